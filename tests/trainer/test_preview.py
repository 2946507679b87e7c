"""Previews: videos of the run's generator by the pipeline of inference, and a training that does not notice."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
import torch

from pipeline.batch.request import KeyedNoise, Request
from pipeline.config import BidirectionalConfig, CausalConfig, FewStepConfig, MultiStepConfig
from tests import digits_fixture
from tests.architecture.source import ROOT
from trainer.build import build
from trainer.config import load_recipe
from trainer.preview import first_prompts
from trainer.sources.config import LatentsConfig
from utils.media.video import read_video
from utils.rng import Rng
from wan.generation import GenerationConfig
from wan.ledger import CacheConfig

PREVIEW = [
    "preview.every=2",
    "preview.count=2",
    "preview.num_frames=4",
    "preview.height=32",
    "preview.width=32",
    "generation={steps: {steps: [1000, 500]}, cache: {window_frames: 4}}",
]


@pytest.fixture
def loop(config, tmp_path):
    """loop(*overrides) -> the loop of a run with previews, in `tmp_path / "run"`."""
    return lambda *overrides: build(config(*PREVIEW, *overrides), tmp_path / "run")


def find_preview(loop):
    """Returns the callback that makes the videos."""
    return next(c for c in loop.callbacks if type(c).__name__ == "Preview")


def test_videos_and_sheet_appear_under_their_step(loop, tmp_path):
    loop("steps=5", "checkpoint.every=5").fit()
    folders = sorted((tmp_path / "run/previews").iterdir())
    assert [f.name for f in folders] == ["step_0000002", "step_0000004"]
    for folder, step in zip(folders, (2, 4), strict=True):
        videos = sorted(folder.glob("*.mp4"))
        assert [f.stem for f in videos] == [f"{p}-0" for p in sorted(digits_fixture.PROMPTS[:2])]
        frames, fps = read_video(videos[0])
        assert frames.shape == (13, 32, 32, 3) and fps == 16
        facts = json.loads(videos[0].with_suffix(".json").read_text())
        assert (facts["step"], facts["weights"], facts["prompt"]) == (step, "ema", videos[0].stem[:-2])
        assert (folder / "contact_sheet.png").read_bytes()[:4] == b"\x89PNG"
        assert not list(folder.glob("*.partial*"))
    first, second = (read_video(sorted(f.glob("*.mp4"))[0])[0] for f in folders)
    assert (first != second).any(), "the generator has moved between the two"


def losses(run) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.parametrize("sampler", ["few_step", "multi_step"])
def test_the_training_does_not_notice(config, tmp_path, sampler):
    few, many = ["preview.sampler.name=few_step"], ["preview.sampler={name: multi_step, num_steps: 2, solver: euler}"]
    more = few if sampler == "few_step" else many
    quiet = build(config("steps=6", "checkpoint.every=6", PREVIEW[-1]), tmp_path / "quiet")
    shown = build(config("steps=6", "checkpoint.every=6", *PREVIEW, *more), tmp_path / "shown")
    for run in (quiet, shown):
        run.fit()
    assert len(list((tmp_path / "shown/previews").iterdir())) == 3
    assert losses(tmp_path / "shown") == losses(tmp_path / "quiet")
    for a, b in zip(shown.method.ema.shadow.values(), quiet.method.ema.shadow.values(), strict=True):
        assert torch.equal(a, b)


def state(method) -> tuple:
    """Returns what a preview must leave as it was."""
    network = method.roles.generator.transformer
    modes = [part.training for part in network.modules()]
    return modes, network.weights_version, {n: p.detach().clone() for n, p in network.named_parameters()}


def same(a: tuple, b: tuple) -> bool:
    return a[:2] == b[:2] and all(torch.equal(x, y) for x, y in zip(a[2].values(), b[2].values(), strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_weights_modes_and_version_are_put_back_even_after_a_failure(loop, monkeypatch, fails):
    run = loop()
    for step in range(3):
        run.method.step(step)
    network, preview = run.method.roles.generator.transformer, find_preview(run)
    network.train()
    before, seen = state(run.method), []
    generate = preview.pipeline.generate

    def watched(*arguments):
        for chunk in generate(*arguments):
            seen.append(state(run.method))
            assert not chunk.latents.requires_grad
            if fails:
                raise RuntimeError("out of memory")
            yield chunk

    monkeypatch.setattr(preview.pipeline, "generate", watched)
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            preview.make(3)
    else:
        preview.make(3)
    assert same(state(run.method), before)
    modes, version, weights = seen[0]
    assert not any(modes) and version != before[1]
    for name, value in run.method.ema.shadow.items():
        assert torch.equal(weights[name], value.bfloat16().float()), name
    assert any(not torch.equal(weights[n], before[2][n]) for n in weights), "the averages are the weights themselves"


@pytest.mark.parametrize(
    ("overrides", "message"), [(["preview.ema=false"], "current"), (["trainer.ema.decay=0"], "current")]
)
def test_current_weights_where_asked_or_where_there_are_no_averages(loop, tmp_path, overrides, message):
    run = loop(*overrides)
    run.method.step(0)
    find_preview(run).make(1)
    facts = next((tmp_path / "run/previews/step_0000001").glob("*.json"))
    assert json.loads(facts.read_text())["weights"] == message


def test_the_videos_are_those_of_inference(loop):
    """The same network, prompt and noise through `inference.py`'s pipeline gives the same latents."""
    run = loop("preview.ema=false")
    preview = find_preview(run)
    chunks = list(preview.generate(preview.requests))
    knobs = preview.requested
    pipeline = knobs.pipeline.build(knobs.generation, preview.bundle, knobs.build_sampler(), preview.geometry)
    requests = [Request(p, i, 0, "") for i, p in enumerate(digits_fixture.PROMPTS[:2])]
    noise = KeyedNoise(Rng(0), requests, (16, 4, 4), torch.float32)
    condition = preview.bundle.condition([r.prompt for r in requests], None)
    for ours, theirs in zip(chunks, pipeline.generate(condition, noise, 2, 4), strict=True):
        assert torch.equal(ours.latents, theirs.latents)


def test_batches_change_no_video(loop, tmp_path):
    one, both = find_preview(loop("preview.batch=1")), find_preview(loop())
    apart = [torch.cat([c.latents for c in one.generate([r])], 1) for r in one.requests]
    together = torch.cat([c.latents for c in both.generate(both.requests)], 1)
    assert (torch.cat(apart) - together).abs().max() < digits_fixture.rounding(passes=6)


def test_a_full_disk_costs_the_preview_and_not_the_training(loop, tmp_path, monkeypatch, caplog):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.preview.write_sheet", full)
    with caplog.at_level(logging.WARNING, "trainer.preview"):
        loop("steps=2", "checkpoint.every=2").fit()
    assert "the preview of step 2 is not written" in caplog.text
    assert not (tmp_path / "run/previews/step_0000002").exists()
    assert (tmp_path / "run/export/transformer/config.json").exists()


def test_a_preview_that_was_cut_off_or_is_repeated_is_replaced(loop, tmp_path):
    preview = find_preview(loop())
    for left in ("step_0000002.partial", "step_0000002"):
        folder = tmp_path / "run/previews" / left
        folder.mkdir(parents=True)
        (folder / "old.mp4").write_bytes(b"old")
    preview.make(2)
    assert [p.name for p in (tmp_path / "run/previews").iterdir()] == ["step_0000002"]
    assert not (tmp_path / "run/previews/step_0000002/old.mp4").exists()


def test_a_run_that_starts_anew_sets_the_old_videos_aside(loop, tmp_path):
    loop("steps=2", "checkpoint.every=2").fit()
    loop("steps=4", "checkpoint.every=2").fit()
    assert {p.name for p in (tmp_path / "run/previews").iterdir()} == {"step_0000002", "step_0000004"}
    loop("steps=2", "checkpoint.every=2").fit(resume=False)
    assert {p.name for p in (tmp_path / "run").glob("previews*")} == {"previews", "previews.before1"}


def test_prompts_from_a_file_and_from_the_source(loop, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a green two moves up\n\na red one moves left\na green two moves up\na red nine moves down\n")
    preview = find_preview(loop(f"preview.prompts={file}", "preview.count=3"))
    assert [r.prompt for r in preview.requests] == [
        "a green two moves up",
        "a red one moves left",
        "a red nine moves down",
    ]
    folder = digits_fixture.latent_folder(tmp_path / "latents", num_clips=6)
    source = LatentsConfig(str(folder), frames=2).build(GenerationConfig(1))
    assert first_prompts(source, 4) == list(digits_fixture.PROMPTS)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["preview.num_frames=3"], "preview: 3 latent frames do not fill chunks of 2"),
        (["generation.cache.window_frames=1"], "window_frames 1 is smaller than sink_frames 0 \\+ chunk 2"),
        (["preview.pipeline={name: causal, chunk: 1}"], "preview.pipeline.chunk; a preview runs as the generator"),
        (["preview.sampler.name=fewstep"], "did you mean few_step"),
        (["preview.every=-1"], "preview.every is -1; write 0"),
        (["preview.prompts=no/such.txt"], "preview.prompts: no/such.txt is not there"),
        (["preview.vae.tiling=true"], "preview: vae.tiling decodes whole clips .* write vae.tiling=false"),
        (["trainer={name: codec}"], "trains no generator of videos; write preview.every=0"),
    ],
)
def test_wrong_previews_are_refused_before_a_model_is_built(loop, monkeypatch, overrides, words):
    monkeypatch.setattr("wan.backbone.Wan.denoiser", None)
    with pytest.raises(ValueError, match=words):
        loop(*overrides)


TRAINED = {
    "digits_teacher": (BidirectionalConfig, MultiStepConfig, 3.0, CacheConfig()),
    "digits_diffusion_forcing": (CausalConfig, MultiStepConfig, 3.0, CacheConfig(6)),
    "digits_ode_init": (CausalConfig, FewStepConfig, 3.0, CacheConfig(6)),
    "digits_causvid": (CausalConfig, FewStepConfig, 3.0, CacheConfig(6)),
    "digits_self_forcing_dmd": (CausalConfig, FewStepConfig, 3.0, CacheConfig(6)),
    "digits_longlive_stream": (CausalConfig, FewStepConfig, 3.0, CacheConfig(9, 3)),
    "longlive_init": (CausalConfig, FewStepConfig, 5.0, CacheConfig(12, 3)),
}


@pytest.mark.parametrize("name", TRAINED)
def test_previews_are_made_as_the_recipe_trains(name):
    pipeline, sampler, shift, cache = TRAINED[name]
    path = ROOT / f"configs/train/{name}.yaml"
    config, _ = load_recipe(path, ["preview.every=1"])
    requested = config.preview.requested(config)
    assert (type(requested.pipeline), type(requested.chosen_sampler)) == (pipeline, sampler)
    assert requested.generation == config.generation
    assert (requested.generation.steps.shift, requested.generation.cache) == (shift, cache)
    config, _ = load_recipe(path, ["preview={every: 1, sampler: {name: multi_step, shift: 2}}"])
    assert config.preview.requested(config).chosen_sampler == MultiStepConfig(shift=2)


@pytest.mark.dist
def test_two_ranks_with_shared_weights_make_the_videos_of_one(recipe, config, tmp_path):
    """Also where FSDP keeps whole weights after a forward: averages must reach it, and must not stay."""
    overrides = [*PREVIEW, "steps=3", "preview.every=1", "checkpoint.every=3", "layout.keep_gathered=true"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    arguments = ["--config_path", str(recipe), "--logdir", str(tmp_path / "two"), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, *arguments], cwd=ROOT, env=environment, **pipes) as run:
        build(config(*overrides), tmp_path / "one").fit()  # next to it
        error = run.communicate(timeout=600)[1]
    assert run.returncode == 0, error
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [row["step"] for row in two] == [0, 1, 2]
    for a, b in zip(one, two, strict=True):
        assert b == {name: pytest.approx(value, rel=digits_fixture.rounding(passes=6)) for name, value in a.items()}
    folders = [tmp_path / run / "previews/step_0000003" for run in ("one", "two")]
    assert sorted(p.name for p in (tmp_path / "two/previews").iterdir()) == [f"step_000000{n}" for n in (1, 2, 3)]
    assert len({tuple(sorted(p.name for p in folder.iterdir())) for folder in folders}) == 1
    for video in folders[0].glob("*.mp4"):
        a, b = (read_video(folder / video.name)[0].astype(int) for folder in folders)
        assert abs(a - b).mean() < 0.5
