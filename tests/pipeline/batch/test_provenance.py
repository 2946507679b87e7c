"""What makes a video what it is: everything that changes its pixels counts, nothing else does, names stay."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.batch.provenance import (
    batch_facts,
    file_facts,
    get_negative_prompt,
    get_seed,
    requested_facts,
    resume_facts,
    settings_hash,
    sidecar_changes,
    video_facts,
    video_settings,
)
from pipeline.batch.request import Avatar, Request
from pipeline.config import InferConfig, load_recipe
from pipeline.track import PromptSchedule
from utils.atomic import write_json
from utils.data.schedules import FRAME, Cue, Moment, ScheduleLine
from utils.diff import differences

PLAIN = Request("a", 2, 1, "a-1")
CUES = (Cue("a", Moment(3, FRAME)), Cue("b", None))
LINE = ScheduleLine("videos.jsonl, line 1", 1, CUES, seed=5, negative_prompt="blurred", height=48)
SCHEDULED = replace(PLAIN, script=LINE)
BUNDLE = SimpleNamespace(spec=SimpleNamespace(name="tiny"), weights_hash="0" * 12)
PLAN = SimpleNamespace(total=6, given=1)


def load_config(*overrides) -> InferConfig:
    """Returns the configuration of the digits recipe with overrides."""
    return load_recipe("configs/infer/digits.yaml", overrides)[0]


def write_sidecar(path: Path, request: Request, config: InferConfig) -> dict:
    """Writes the sidecar of a video as a run does; returns its facts."""
    track = PromptSchedule([(0, None), (3, None)])
    track.cursor, track.taken = 1, [0, 4]
    facts = file_facts(request, 21, 8.0) | batch_facts(config, BUNDLE, PLAN, {"total": 1.0})
    write_json(path, facts | video_facts(request, config, track, [0.5]))
    return json.loads(path.read_text())


def test_a_schedule_says_more_than_the_configuration():
    config = load_config("seed=3", "negative_prompt=dark")
    assert (get_seed(PLAIN, config), get_negative_prompt(PLAIN, config)) == (3, "dark")
    assert (get_seed(SCHEDULED, config), get_negative_prompt(SCHEDULED, config)) == (5, "blurred")
    silent = replace(SCHEDULED, script=replace(LINE, seed=None, negative_prompt=None))
    assert (get_seed(silent, config), get_negative_prompt(silent, config)) == (3, "dark")


def test_the_names_of_facts_stay(tmp_path):
    """Programs and later versions read them."""
    config = load_config("threads=1")
    facts = write_sidecar(tmp_path / "a.json", replace(SCHEDULED, image=Path("x.png")), config)
    wanted = "prompt index sample frames fps model config_hash weights_hash latent_frames given_frames seconds"
    assert [*facts] == [*wanted.split(), "seed", "asked", "start", "switches"]
    assert [*facts["asked"]] == "length ends negative_prompt height width start_seconds config".split()
    assert facts["asked"]["config"].keys() >= {"model", "pipeline", "sampler", "vae", "decoder", "text"}
    assert facts["asked"]["config"]["output"] == {"fps": config.output.fps, "crf": config.output.crf}
    assert [*facts["asked"]["config"]["data"]] == ["i2v", "noise", "initial_latents"]
    assert facts["switches"][1] == {"text": "b", "asked_frame": 3, "frame": 4, "recache_ms": 500.0}
    resumed = resume_facts(config, "f" * 12, [PLAIN, SCHEDULED], (0, 3), 6)
    assert [*resumed] == "config weights films files model switches latent_frames".split()
    assert [*resumed["films"][0]] == "name prompts seed negative_prompt start place".split()
    plain = write_sidecar(tmp_path / "b.json", PLAIN, config)
    assert "start" not in plain and "switches" not in plain


@pytest.mark.parametrize(
    "knob",
    ["output.folder=x", "output.sheet=false", "threads=2", "vae.device=cpu"]
    + ["model.offload.parts=true", "model.offload.blocks=true", "model.offload.caches=cpu"],
)
def test_what_changes_no_video_is_no_fact(tmp_path, knob):
    before, now = load_config(), load_config(knob)
    assert before != now
    write_sidecar(tmp_path / "a.json", SCHEDULED, before)
    assert sidecar_changes(tmp_path / "a.json", SCHEDULED, now) == {}
    assert resume_facts(before, "", [PLAIN], (), 6) == resume_facts(now, "", [PLAIN], (), 6)


@pytest.mark.parametrize("knob", ["output.resume=true", "output.overwrite=true"])
def test_how_often_a_run_starts_enters_no_hash(knob):
    assert settings_hash(load_config()) == settings_hash(load_config(knob))
    assert video_settings(load_config()) == video_settings(load_config(knob))


def test_every_section_that_affects_pixels_is_compared(tmp_path):
    """One leaf of each at a time, whatever knobs it has."""
    config = load_config()
    facts = write_sidecar(tmp_path / "a.json", PLAIN, config)
    for section, knobs in facts["asked"]["config"].items():
        for name, value in knobs.items():
            if isinstance(value, dict):
                continue
            other = json.loads(json.dumps(facts))
            other["asked"]["config"][section][name] = "another"
            write_json(tmp_path / "b.json", other)
            changes = sidecar_changes(tmp_path / "b.json", PLAIN, config)
            assert changes == {f"asked.config.{section}.{name}": "another"}
    assert sidecar_changes(tmp_path / "a.json", PLAIN, config) == {}


def test_sidecar_changes_are_named_with_the_recorded_value(tmp_path):
    config = load_config("seed=3", "num_output_frames=6")
    path = tmp_path / "a.json"
    facts = write_sidecar(path, PLAIN, config)
    assert sidecar_changes(path, PLAIN, replace(config, seed=4)) == {"seed": 3}
    assert sidecar_changes(path, replace(PLAIN, prompt="b"), config) == {"prompt": "a"}
    assert sidecar_changes(path, replace(PLAIN, image=Path("x.png")), config) == {"start": None}
    assert sidecar_changes(path, PLAIN, replace(config, num_output_frames=7)) == {"asked.length": "latent frame 6"}
    del facts["asked"]["length"]  # of a version that did not write it
    write_json(path, facts)
    assert sidecar_changes(path, PLAIN, replace(config, num_output_frames=7)) == {}
    write_sidecar(path, SCHEDULED, config)
    later = replace(LINE, cues=(Cue("a", Moment(4, FRAME)), Cue("c", None)))
    changes = sidecar_changes(path, replace(SCHEDULED, script=later), config)
    assert changes == {"asked.ends.0": "latent frame 3", "prompts.1": "b"}


def test_eight_bit_linears_are_a_fact(tmp_path):
    """Also against a video from before there was a choice."""
    before, now = (load_config("model.dtype=bf16", *more) for more in ((), ("model.linears=fp8",)))
    facts = write_sidecar(tmp_path / "a.json", PLAIN, before)
    wanted = {"asked.config.model.linears": "weights"}
    assert sidecar_changes(tmp_path / "a.json", PLAIN, now) == wanted
    del facts["asked"]["config"]["model"]["linears"]
    write_json(tmp_path / "a.json", facts)
    assert sidecar_changes(tmp_path / "a.json", PLAIN, now) == wanted
    assert sidecar_changes(tmp_path / "a.json", PLAIN, before) == {}
    assert resume_facts(before, "", [PLAIN], (), 6) != resume_facts(now, "", [PLAIN], (), 6)


def test_resume_facts_tell_videos_apart(tmp_path):
    config = load_config()
    facts = resume_facts(config, "f", [PLAIN], (0,), 6)
    assert json.loads(json.dumps(facts)) == facts, "as a snapshot gives them back"
    others = {
        "config.seed": resume_facts(replace(config, seed=9), "f", [PLAIN], (0,), 6),
        "weights": resume_facts(config, "e", [PLAIN], (0,), 6),
        "films.0.prompts.0": resume_facts(config, "f", [replace(PLAIN, prompt="b")], (0,), 6),
        "films.0.place.1": resume_facts(config, "f", [replace(PLAIN, sample=2)], (0,), 6),
        "films": resume_facts(config, "f", [PLAIN, PLAIN], (0,), 6),
        "switches.0": resume_facts(config, "f", [PLAIN], (1,), 6),
        "latent_frames": resume_facts(config, "f", [PLAIN], (0,), 7),
    }
    for name, other in others.items():
        assert [change.path for change in differences(facts, other)] == [name]
    start = replace(PLAIN, image=tmp_path / "x.png")
    one, two = (resume_facts(config, "f", [start], (0,), 6, lambda path, h=h: h) for h in "ab")
    assert [str(c) for c in differences(one, two)] == [f"files.{tmp_path / 'x.png'} was a and is b"]


def test_sounds_and_masks_of_a_talking_video_are_facts(tmp_path):
    """Also what is in their files; other videos' facts have no such names."""
    config, names = load_config(), [tmp_path / name for name in ("x.png", "a.wav", "m.png", "b.wav")]
    talk = replace(PLAIN, avatar=Avatar(names[0], (names[1],), (names[2],)))
    one, two = (resume_facts(config, "f", [talk], (0,), 6, lambda path, h=h: h) for h in "ab")
    assert {c.path for c in differences(one, two)} == {f"files.{path}" for path in names[:3]}
    other = replace(talk, avatar=Avatar(names[0], (names[3],), (names[2],)))
    assert "films.0.sounds.0" in {
        c.path for c in differences(one, resume_facts(config, "f", [other], (0,), 6, lambda _: "a"))
    }
    write_sidecar(tmp_path / "v.json", talk, config)
    assert sidecar_changes(tmp_path / "v.json", talk, config) == {}
    assert sidecar_changes(tmp_path / "v.json", other, config) == {"sounds.0": str(names[1])}
    assert not {"sounds", "masks"} & video_facts(PLAIN, config, None, ()).keys()


def test_requested_facts_are_as_the_user_wrote_them():
    config = load_config("seconds=1.5", "height=32")
    assert requested_facts(PLAIN, config)["length"] == "second 1.5"
    assert requested_facts(PLAIN, config)["height"] == 32 and requested_facts(SCHEDULED, config)["height"] == 48
    assert requested_facts(SCHEDULED, config)["ends"] == ["latent frame 3"]
