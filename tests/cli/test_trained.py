"""train.py, then inference.py with the exported weights: what the preview showed, from a recipe that says nothing."""

from __future__ import annotations

import json

import pytest

import inference
import train
from tests import digits_fixture
from tests.digits_fixture import PROMPTS, videos
from wan.generation import FILE

SILENT = """
model: {{path: {model}, checkpoint: {run}/export/transformer, dtype: fp32}}
text: {{dtype: fp32}}
output: {{sheet: false}}
height: 32
width: 32
num_output_frames: 4
threads: 1
"""
KNOBS = [
    "steps=2",
    "checkpoint.every=2",
    "preview={every: 2, count: 2, batch: 1, num_frames: 4, height: 32, width: 32}",
    "generation.cache={window_frames: 3, sink_frames: 1, rope: ROPE}",
    "generation.context={sigma: 0.1, renoise: true}",
    "seed=5",
]


def warnings(caplog) -> list[str]:
    """Returns what was said of values that differ from the training."""
    return [record.getMessage() for record in caplog.records if record.name == "pipeline.trained"]


def trained(folder, kind: str):
    """Trains two steps with a preview; returns (the run, a recipe that says nothing of how the model runs)."""
    rope = "read" if kind == "distill" else "write"
    path = digits_fixture.flow_recipe(folder) if kind == "flow" else digits_fixture.distill_recipe(folder)[0]
    run, knobs = folder / "run", [knob.replace("ROPE", rope) for knob in KNOBS]
    if kind == "sparse":
        knobs.append(
            "trainer.generator.sparse={name: asa, block: 8, max: 0.4, dense: {own: false, sink: false, newest: 0}}"
        )
    assert train.main(["--config_path", str(path), "--logdir", str(run), *knobs]) == 0
    silent = folder / "silent.yaml"
    silent.write_text(SILENT.format(model=digits_fixture.link_parts(folder / "parts"), run=run))
    (folder / "two.txt").write_text("\n".join(PROMPTS[:2]))
    return run, silent


@pytest.mark.parametrize("kind", ["distill", "flow", "sparse"])
def test_the_export_generates_what_the_preview_showed(tmp_path, caplog, kind):
    run, silent = trained(tmp_path, kind)
    arguments = ["--config_path", str(silent), "--data_path", str(tmp_path / "two.txt"), "--seed", "5"]
    more = ["generation.chunk=1", "generation.cache.sink_frames=0"]
    assert inference.main([*arguments, "--output_folder", str(tmp_path / "same")]) == 0
    assert not warnings(caplog)
    assert inference.main([*arguments, "--output_folder", str(tmp_path / "other"), *more]) == 0
    shown = videos(run / "previews/step_0000002")
    assert len(shown) == 2 and videos(tmp_path / "same") == shown
    if kind == "sparse":
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert any(0 < row.get("sparsity", 0) < 1 for row in rows), "no key was left out"
        dense = [*arguments, "--output_folder", str(tmp_path / "dense"), "model.sparse.name=none"]
        assert inference.main(dense) == 0 and videos(tmp_path / "dense") != shown
        assert "model.sparse.name is none" in warnings(caplog)[-1]
    assert videos(tmp_path / "other").keys() == shown.keys() and videos(tmp_path / "other") != shown
    message = warnings(caplog)[0]
    for words in ("generation.chunk is 1 (command line), trained with 2", "sink_frames is 0 (command line)", FILE):
        assert words in message
    facts = json.loads(next((tmp_path / "same").glob("*.json")).read_text())["asked"]["config"]
    exported = json.loads((run / "export/transformer" / FILE).read_text())
    assert ("sparse" in exported) == (kind == "sparse")
    assert {**facts["generation"], **({"sparse": facts["model"]["sparse"]} if "sparse" in exported else {})} == exported
    assert facts["sampler"]["name"] == ("multi_step" if kind == "flow" else "few_step")


def test_a_lora_carries_how_it_was_trained(tmp_path, caplog):
    path, _ = digits_fixture.distill_recipe(tmp_path)
    run, silent = tmp_path / "run", tmp_path / "silent.yaml"
    more = ["steps=1", "trainer.generator.lora.rank=2", "generation.cache.window_frames=2"]
    assert train.main(["--config_path", str(path), "--logdir", str(run), *more]) == 0
    start = tmp_path / "start/transformer"
    parts = digits_fixture.link_parts(tmp_path / "parts")
    silent.write_text(SILENT.replace("/export/transformer", "").format(model=parts, run=start))
    lora = ["--lora_path", str(run / "export/lora.safetensors"), "--print_config"]
    assert inference.main(["--config_path", str(silent), *lora]) == 0
    assert not warnings(caplog)
    assert inference.main(["--config_path", str(silent), *lora, "generation.cache.window_frames=4"]) == 0
    (message,) = warnings(caplog)
    assert "generation.cache.window_frames is 4 (command line), trained with 2" in message
