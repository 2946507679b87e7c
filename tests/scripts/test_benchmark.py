"""scripts/benchmark.py: a tiny run, what it records, and what it says about arguments that make no sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scripts import benchmark
from scripts.bench import endless as benchmark_endless
from scripts.bench import infer as benchmark_infer
from tests import digits_fixture

ROOT = Path(__file__).resolve().parents[2]
WAN = ROOT / "configs/infer/benchmark_wan_1.3B.yaml"
DIGITS = ["--config_path", str(ROOT / "configs/infer/digits.yaml"), "--random_weights", "--layers", "1"]
DIGITS += ["--height", "32", "--width", "32", "--peak_tflops", "0.05", "model.spec=digits"]
DIGITS += [
    f"model.path={ROOT / 'assets/digits'}",
    "sampler.name=few_step",
    "generation.steps.steps=[1000, 750, 500, 250]",
    "sampler.guidance=2",
    "threads=0",
]


def call(tmp_path, *argv, command="infer") -> int:
    """Runs a command as on a machine without a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        return benchmark.main([command, *argv, "--output_folder", str(tmp_path)])


def run(tmp_path, *argv, name="digits"):
    """Returns the saved (JSON, markdown)."""
    assert call(tmp_path, *argv) == 0
    path = tmp_path / f"benchmark_infer_{name}.json"
    return json.loads(path.read_text()), path.with_suffix(".md").read_text()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return run(tmp_path_factory.mktemp("bench"), *DIGITS, "--chunks", "2", "--warmup", "1")


def test_a_run_records_what_it_was(measured):
    result, text = measured
    assert result["status"] == "measured" and "--layers 1" in result["command"]
    assert {"name", "torch", "threads", "load average"} <= set(result["device"])
    model = {"blocks": 1, "size": "32x32", "window_frames": 6, "passes": "4 + 1 context, twice (guidance)"}
    assert model.items() <= result["model"].items()
    assert result["model"]["attention"] == "auto: sdpa"
    assert result["model"]["weights"].startswith("random, VAE ")
    assert result["chunks"] == {"warm-up": 1, "measured": 2, "pixel frames each": 12}
    assert result["attention kernels"], "no attention was seen"
    assert "| end to end |" in text and "auto: sdpa" in text


def test_parts_add_up(measured):
    """Every part took time, and together they are the whole but for the bookkeeping between them."""
    result, _ = measured
    times = {name: values["mean"] for name, values in result["ms per chunk"].items()}
    assert all(value > 0 for value in times.values())
    parts = times["denoise"] + times["context"] + times["decode"]
    assert parts <= times["end to end"] and times["noise drawing"] < times["denoise"]
    fps = result["fps"]
    assert fps["denoise"] > fps["denoise + context"] > fps["end to end"]
    assert fps["end to end"] == pytest.approx(1e3 * 12 / times["end to end"])
    work = result["tera-operations"]
    assert work["per chunk"]["denoise"] == pytest.approx(4 * work["per chunk"]["context"])
    assert work["per chunk"]["context"] == pytest.approx(2 * sum(work["per pass"].values()))
    whole = work["per chunk"]["end to end"]
    assert whole == pytest.approx(sum(work["per chunk"][name] for name in ("denoise", "context", "decode")))
    assert result["MFU"]["end to end"] == pytest.approx(whole / (times["end to end"] / 1e3) / 0.05)


def test_memory_is_counted(measured):
    result, _ = measured
    copied = result["bytes copied per chunk"]
    tokens, width = 3 * 4, 128
    keys = tokens * width * 4 * 2  # keys and values, fp32
    assert copied["cache write"] == 10 * keys and copied["commit"] == 2 * keys
    assert copied["rotated keys"] == 0 < copied["decode"]
    for part in ("network", "decode"):
        requested = result["allocations per chunk"][part]
        assert requested["number"] > 10 and requested["bytes"] > requested["number"]
    assert result["peak memory"]["resident (RSS)"] > 50e6


def test_windows_are_compared(tmp_path):
    result, text = run(tmp_path, *DIGITS, "--windows", "6", "12", name="digits_copies")
    rows = result["bytes copied per chunk"]
    assert rows["rope: write, W = 6"] == rows["rope: write, W = 12"]
    rotated = [rows[f"rope: read, W = {window}"]["rotated keys"] for window in (6, 12)]
    assert rotated == [10 * window * 4 * 128 * 4 for window in (6, 12)]
    assert f"{rotated[0]:,}" in text


def test_too_much_for_a_cpu_keeps_an_older_result(tmp_path, capsys):
    argv = ["--config_path", str(WAN), "--random_weights"]
    result, text = run(tmp_path, *argv, name="wan_1.3B")
    assert result["status"] == "not run" and "141.5 tera-operations" in result["reason"]
    assert "not run" in text and "--random_weights" in text, "the command stands next to it"
    path = tmp_path / "benchmark_infer_wan_1.3B.json"
    path.write_text(json.dumps({"status": "measured"}))
    result, _ = run(tmp_path, *argv, name="wan_1.3B")
    assert result == {"status": "measured"} and "kept" in capsys.readouterr().out


def test_a_minute_is_eighty_chunks():
    from pipeline.config import load_recipe

    config, _ = load_recipe(WAN)
    assert benchmark.default_chunks(config, 16) == 80
    config.seconds = 0
    assert benchmark.default_chunks(config, 16) == benchmark.DEFAULT_CHUNKS


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--layers", "0"], "--layers is 0; write 1 or more"),
        (["--chunks", "-1"], "--chunks is -1"),
        (["--warmup", "0"], "--warmup is 0"),
        (["--peak_tflops", "0"], "write a positive number"),
        (["--windows", "2"], "smaller than sink"),
        (["--height", "33"], "height 33 is not a multiple"),
        (["generation.cache.window_frames=-1"], "without a window"),
        (["pipeline.name=bidirectional"], "only causal"),
        (["model.spec="], "needs the sizes by name"),
        (["no_such_knob=1"], "no_such_knob"),
        (["--no_such_option"], "neither an option nor key=value"),
        (["stray"], "'stray' is neither"),
    ],
)
def test_bad_arguments_are_refused(argv, message, capsys, tmp_path):
    assert digits_fixture.exit_status(call, tmp_path, *DIGITS, *argv) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_layers_need_random_weights(capsys):
    assert benchmark.main(["infer", "--config_path", str(WAN), "--layers", "2"]) == 2
    assert "write --random_weights too" in capsys.readouterr().err


def test_an_unknown_gpu_asks_for_its_peak(monkeypatch):
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Imaginary 1")
    with pytest.raises(ValueError, match="Imaginary 1.*--peak_tflops"):
        benchmark.peak_rate(device, None)
    assert benchmark.peak_rate(device, 2.0) == (2e12, "--peak_tflops")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert benchmark.peak_rate(device, None)[0] == 989e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert benchmark.peak_rate(device, None)[0] == 756e12


def test_a_named_backend_is_told():
    from pipeline.config import load_recipe

    config, _ = load_recipe(WAN, ["model.attention.backend=sdpa"])
    assert benchmark_infer.attention_backend(config, None) == "sdpa"


def test_train_measures_both_updates(tmp_path, capsys):
    recipe, _ = digits_fixture.distill_recipe(tmp_path / "recipe")
    flags = ["train", "--config_path", str(recipe), "--updates", "1", "--output_folder", str(tmp_path)]
    assert benchmark.main([*flags, "--name", "tiny", "--peak_tflops", "0.1"]) == 0
    result = json.loads((tmp_path / "benchmark_train_tiny.json").read_text())
    generator, critic = (result["seconds"][name]["mean"] for name in ("generator update", "critic update"))
    assert result["seconds per step"] == pytest.approx(critic + generator / 2) and critic > 0  # ratio 2
    work = result["tera-operations"]
    assert all(0 < result["MFU"][name] < 1 for name in result["MFU"])
    assert work["generator update"] * 1e12 / 0.1e12 / generator == pytest.approx(result["MFU"]["generator update"])
    assert "steps/s" in capsys.readouterr().out


def test_train_of_wan_is_not_tried_on_a_cpu(tmp_path, capsys):
    flags = ["--config_path", str(ROOT / "configs/train/benchmark_wan_1.3B.yaml"), "--random_weights"]
    assert benchmark.main(["train", *flags, "--output_folder", str(tmp_path)]) == 0
    assert "not run: a step of t2v-1.3B needs a CUDA device" in capsys.readouterr().out


ENDLESS = [*(word for word in DIGITS if word not in ("--peak_tflops", "0.05")), "--chunks", "10", "--runs", "1"]
HELD = "memory, median of each tenth"


def test_endless_counts_early_and_late(tmp_path, capsys):
    assert call(tmp_path, *ENDLESS, "--name", "tiny", command="endless") == 0
    result = json.loads((tmp_path / "benchmark_endless_tiny.json").read_text())
    assert result["chunks"] == {"measured": 10, "latent frames": 30, "counted": [3, 7], "runs": 1}
    assert {"name", "torch", "threads"} <= set(result["device"]) and result["date"].count("-") == 2
    for run in result["runs"]:
        assert run["early"] == run["late"]
        assert run["early"]["operators"]["aten::copy_"] > 10 and run["early"]["bytes copied"] > 1e5
        assert run["early"]["allocations"]["number"] > 100
        tenths = run["ms per chunk, median of each tenth"]
        assert len(tenths) == 10 and run["last tenth / first tenth"] == tenths[-1] / tenths[0] > 0
        assert all(held["memory"] > 50e6 for held in run[HELD])
    text = capsys.readouterr().out
    assert "| operators | identical | identical | met |" in text and "| chunk 7 |" in text


def note(ratio=1.0, operators=5, copied=7, allocations=9, grown=0.0) -> dict:
    """Returns what a run tells, its late chunk and its end as given; early all is 5, 7, 9 and 200 MB are held."""

    def work(*counts):
        return dict(zip(("operators", "bytes copied", "allocations"), counts, strict=True))

    memory = [{"memory": 200e6}, {"memory": 900e6}, {"memory": 200e6 + grown}]
    late = work(operators, copied, allocations)
    return {"last tenth / first tenth": ratio, "early": work(5, 7, 9), "late": late, HELD: memory}


@pytest.mark.parametrize(
    ("runs", "missed"),
    [
        ([note()], []),
        ([note(1.2), note(1.05), note(1.1)], []),
        ([note(1.06), note(1.07)], ["last tenth / first tenth"]),
        ([note(), note(operators=6)], ["operators"]),
        ([note(copied=6)], ["bytes copied"]),
        ([note(allocations=8), note()], ["allocations"]),
        ([note(grown=1.9e6), note(grown=-9e6)], []),
        ([note(grown=2.1e6), note()], ["memory, growth"]),
    ],
)
def test_limits_of_a_long_video(runs, missed):
    rows = benchmark_endless.check_criteria(runs)
    assert [name for name, row in rows.items() if not row["met"]] == missed
    assert benchmark_endless.passed({"criteria": rows}) is not bool(missed)


def test_five_megabytes_are_too_much_however_much_is_held():
    large = note()
    large[HELD] = [{"memory": 2e9}, {"memory": 2e9 + 5.1e6}]
    assert not benchmark_endless.check_criteria([large])["memory, growth"]["met"]


@pytest.mark.parametrize(("met", "status"), [(True, 0), (False, 1)])
def test_check_tells_by_its_status(met, status, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_endless, "measure", lambda *arguments: {"criteria": {"a": {"met": met}}})
    monkeypatch.setattr(benchmark_endless, "table", lambda result: [])
    assert call(tmp_path, *ENDLESS, command="endless") == 0
    assert call(tmp_path, *ENDLESS, "--check", command="endless") == status


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--chunks", "9"], "--chunks is 9; write 10 or more"),
        (["--runs", "0"], "--runs is 0; write 1 or more"),
        (["batch=2"], "a session makes one video; write batch=1"),
    ],
)
def test_endless_refuses(argv, message, tmp_path, capsys):
    assert call(tmp_path, *ENDLESS, *argv, command="endless") == 2
    assert message in capsys.readouterr().err


def test_endless_of_wan_is_not_tried_on_a_cpu(tmp_path):
    assert call(tmp_path, "--config_path", str(WAN), "--random_weights", command="endless") == 0
    result = json.loads((tmp_path / "benchmark_endless_wan_1.3B.json").read_text())
    assert result["status"] == "not run" and "141.5 tera-operations" in result["reason"]
