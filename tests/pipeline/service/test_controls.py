"""What the page's controls change of a recipe: nothing, where they are left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.config import load_recipe
from pipeline.service.controls import OWN_SIZE, RANDOM, Controls, read_lora_lines
from tests.architecture.source import ROOT
from tests.pipeline.service.talks import choice

RECIPES = ROOT / "configs/infer"
FILES = ("a face.png", "a+voice.wav")


def controls(name: str, *overrides: str) -> Controls:
    return Controls.of(load_recipe(RECIPES / name, overrides)[0], 25 if name != "digits_avatar.yaml" else 8)


def changed(name: str, *overrides: str, **given):
    """Returns the configuration with a user's choice, and without."""
    own = controls(name, *overrides)
    made = own.overrides(choice(own, *FILES, prompt="a two moves left", **given))
    return load_recipe(RECIPES / name, [*overrides, *made])[0], load_recipe(RECIPES / name, overrides)[0]


@pytest.mark.parametrize("name", ["digits_avatar.yaml", "live_avatar.yaml", "live_avatar_tpp.yaml", "wan_s2v.yaml"])
def test_controls_that_are_left_alone_change_nothing(name):
    made, plain = changed(name)
    assert (made.data.image, made.data.audio, made.data.prompt) == (FILES[0], [FILES[1]], "a two moves left")
    assert replace(made, data=plain.data) == plain


def test_each_control_reaches_its_knob():
    given = {"num_clip": 10, "num_steps": 6, "guidance": 2.5, "infer_frames": 60, "size": "384*256", "seed": 7}
    made, _ = changed("live_avatar.yaml", **given, lora=("x.safetensors:0.5",))
    assert made.seconds == 10 * 60 / 25 and made.num_steps == 6 and made.chosen_sampler.guidance == 2.5
    assert made.generation.cache.window_frames == 15 and made.pipeline.size == "384*256" and made.seed == 7
    assert [(entry.path, entry.strength) for entry in made.model.loras] == [("x.safetensors", 0.5)]
    assert changed("live_avatar.yaml", lora=())[0].model.loras == ()


def test_the_published_window_is_48_frames_and_a_clip_of_192_seconds():
    own = controls("live_avatar.yaml")
    assert own.window == 48 and own.clip_seconds == 1.92 and own.window_step == 12 and own.windows == (12, 156)
    assert own.sizes[0] == "704*384" and own.solvers == ("euler",) and not own.fixed_steps


def test_clips_of_the_undistilled_model_are_its_window():
    made, plain = changed("wan_s2v.yaml", infer_frames=48, solver="euler")
    assert made.pipeline.clip_frames == 12 != plain.pipeline.clip_frames and made.chosen_sampler.solver == "euler"


def test_a_distilled_model_keeps_its_steps():
    own = controls("digits_avatar.yaml")
    assert own.fixed_steps and own.sizes == (OWN_SIZE,) and own.solvers == ("few_step",)
    with pytest.raises(ValueError, match="distilled for 4 steps"):
        changed("digits_avatar.yaml", num_steps=5)
    assert changed("digits_avatar.yaml", guidance=2.0)[0].chosen_sampler.guidance == 2.0


def test_any_seed_is_another_each_time():
    seeds = {changed("digits_avatar.yaml", seed=RANDOM)[0].seed for _ in range(4)}
    assert len(seeds) > 1


@pytest.mark.parametrize(
    "given, words",
    [
        ({"seed": -2}, "the seed is -2"),
        ({"infer_frames": 50}, "a multiple of 12"),
        ({"size": "wide"}, "size"),
        ({"solver": "magic"}, "solver 'magic'"),
        ({"guidance": 1e9}, "guidance"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_write(given, words):
    with pytest.raises(ValueError, match=words):
        changed("live_avatar.yaml", **given)


def test_inputs_are_all_needed():
    own = controls("digits_avatar.yaml")
    good = choice(own, *FILES)
    for missing, words in (({"image": None}, "portrait"), ({"sounds": ()}, "voice"), ({"prompt": " "}, "prompt")):
        with pytest.raises(ValueError, match=words):
            own.overrides(replace(good, **missing))


def test_only_talking_recipes_have_a_page():
    with pytest.raises(ValueError, match="no talking videos"):
        controls("digits.yaml")


def test_lora_files_stand_one_a_line():
    assert read_lora_lines(" a b.safetensors:0.5 \n\nc\n") == ("a b.safetensors:0.5", "c")
    with pytest.raises(ValueError, match="strength"):
        read_lora_lines("a.safetensors:1e9")
