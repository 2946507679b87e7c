"""prompts/wan_16.txt and prompts/wan_interactive.jsonl: long prompts of our own that fit Wan's encoder and recipes."""

from __future__ import annotations

from pipeline.batch.schedule import check_switches, requested_frames, video_length
from pipeline.config import load_recipe
from tests.architecture.source import ROOT
from utils.data.prompts import read_prompts
from utils.data.schedules import read_schedules
from wan.geometry import Geometry
from wan.spec import SPECS

SPEC = SPECS["t2v-1.3B"]
WORDS = (35, 200)  # of a long prompt; two tokens a word are 400 of the 512 that the encoder reads


def test_sixteen_long_prompts_differ():
    prompts = [line.text for line in read_prompts(ROOT / "prompts/wan_16.txt")]
    assert len(prompts) == len({prompt[:40] for prompt in prompts}) == 16
    assert all(60 < len(prompt.split()) < WORDS[1] for prompt in prompts)


def test_four_schedules_fit_the_recipe():
    config, _ = load_recipe(ROOT / "configs/infer/longlive_interactive.yaml")
    scripts = read_schedules(ROOT / "prompts/wan_interactive.jsonl")
    geometry = Geometry.of(SPEC, config.height, config.width)
    assert len(scripts) == len({script.name for script in scripts}) == 4
    for script in scripts:
        total, _ = video_length(script, geometry, SPEC.fps)
        assert total == config.num_output_frames and len(script.cues) == 4
        requested = tuple(requested_frames(script, geometry, SPEC.fps))
        assert requested == (0, 60, 120, 180)
        check_switches(script, requested, config.generation.spans(total))
        assert all(WORDS[0] < len(cue.text.split()) < WORDS[1] for cue in script.cues)
