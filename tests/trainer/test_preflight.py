"""Wrong trainings end with status 2 before a network is built, naming the key and what to write instead."""

from __future__ import annotations

import pytest
import torch

import train
from tests import digits_fixture
from tests.architecture.source import ROOT
from tests.wan.checkpoint.lora_files import write
from trainer import preflight
from trainer.config import load_recipe

WEIGHTS = ROOT / "assets/digits/transformer"
IMAGE_LORA = {"blocks.0.cross_attn.k_img": (torch.zeros(3, 8), torch.zeros(8, 3))}
RECIPE = f"""
model: {ROOT}/assets/digits
steps: 2
generation: {{chunk: 3, steps: {{steps: [1000, 750, 500, 250]}}, cache: {{window_frames: 6}}}}
trainer:
  name: distill
  generator: {{weights: {WEIGHTS}}}
  teacher: {{weights: {WEIGHTS}}}
  critic: {{weights: {WEIGHTS}}}
  source:
    name: rollout
    prompts: {ROOT}/prompts/digits_all.txt
    batch: 2
    frames: 6
    loss_frames: 6
  loss: {{name: dmd}}
  text: {{dtype: fp32}}
"""


@pytest.fixture
def recipe(tmp_path):
    """The recipe of a distillation of the shipped digits model."""
    path = tmp_path / "distill.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def refused(recipe, tmp_path, capsys, monkeypatch):
    """refused(*overrides) -> what train.py says; asserts status 2, and that no part of a model was begun."""

    def built(*arguments, **options):
        raise AssertionError("a part of a model was built")

    for part in ("denoiser", "open_vae", "open_text"):
        monkeypatch.setattr(f"wan.backbone.Wan.{part}", built)

    def run(*overrides: str) -> str:
        assert train.main(["--config_path", str(recipe), "--logdir", str(tmp_path / "run"), *overrides]) == 2
        said = capsys.readouterr().err
        assert said.startswith("train.py: ") and "Traceback" not in said
        assert not (tmp_path / "run/checkpoints").exists()
        return said

    return run


WRONG = {
    # overrides -> words that the message holds: the key, what was given, what to write
    "trainer.sorce.frames=9": ["unknown key trainer.sorce", "did you mean trainer.source"],
    "steps=many": ["steps", "'many'", "int"],
    "trainer.loss={name: gan, discriminator: {layers: [1]}}": [
        "trainer: loss gan needs real clips",
        "set trainer.source.clips",
    ],
    "trainer.source={name: latents, path: %latents, frames: 3}": [
        "needs a negative prompt's condition, which source latents does not give",
        "set trainer.source.name=rollout",
    ],
    "trainer.source.frames=7": [
        "trainer.source",
        "7 latent frames do not fill chunks of 3",
        "use 6 or 9",
    ],
    "trainer.source.frames_max=10": [
        "trainer.source",
        "10 latent frames do not fill chunks of 3",
        "use 9 or 12",
    ],
    "trainer.source.loss_frames=9": ["loss_frames 9 is more than a rollout's 6 frames", "write at most that"],
    "generation.cache={window_frames: 4, sink_frames: 2}": [
        "window_frames 4",
        "chunk 3",
        "write at least 5",
    ],
    "generation.first_chunk=1": ["6 latent frames do not fill chunks of 3 (1 + 3n)", "use 4 or 7"],
    "generation.steps.steps=[250, 500]": ["generation.steps", "must descend"],
    "trainer.source.prompts=no/such.txt": [
        "trainer.source.prompts: no/such.txt is not there",
        "one prompt per line",
    ],
    "trainer.source={prompts: '', clips: no/clips}": [
        "trainer.source.clips: no/clips is not there",
        "encode_latents",
    ],
    "trainer.source.prompts=''": ["trainer.source", "write either prompts", "or clips"],
    "trainer.source.height=50": ["trainer.source", "height 50 is not a multiple of 16", "use 48 or 64"],
    "trainer.generator.weights=no/g.pt": ["trainer.generator.weights: no/g.pt is missing", "write a weight file"],
    "trainer.teacher.weights=no/t": ["trainer.teacher.weights: no/t is missing", "write a weight file"],
    "trainer.critic.weights=models/Wan2.1-T2V-1.3B": ["trainer.critic.weights", "bash scripts/download.sh t2v-1.3B"],
    "trainer.generator.use_ema=true": ["trainer.generator.weights", "no averaged ones", "leave use_ema out"],
    "trainer.generator.weights=%text": ["trainer.generator.weights", "umt5", "not a transformer"],
    "trainer.generator.lora={rank: 2, weights: no/lora.pt}": ["trainer.generator.lora.weights: no/lora.pt"],
    "trainer.generator.lora={rank: 3, weights: %lora}": [
        "trainer.generator.lora.weights",
        "weights for 1 layers",
        "k_img",
    ],
    "trainer.critic.lora={rank: 3, weights: %text}": ["trainer.critic.lora.weights", "holds no LoRA"],
    "trainer.teacher={weights: '', spec: digit}": ["trainer.teacher", "spec 'digit' is unknown", "write one of"],
    "trainer.teacher.spec=digits": ["trainer.teacher", "either spec", "or weights"],
    "trainer.teacher={weights: '', spec: t2v-1.3B}": ["text widths differ", "trainer.teacher 4096", "of one family"],
    "trainer.critic={weights: '', spec: ti2v-5B}": ["latent channels differ", "trainer.critic 48", "(its VAE) 16"],
    "model=no/model": ["model: no/model is not a directory", "write a folder with text encoder and VAE"],
    "model=%blind": ["model:", "has no vae", "Wan2.1_VAE.pth", "write a folder that has it"],
    "layout.sequence=3": ["layout.sequence: 3 ranks cannot share the 2 heads", "write a divisor of 2"],
    "preview={every: 1, num_frames: 5}": ["preview: 5 latent frames do not fill chunks of 3", "preview.every=0"],
    "preview={every: 1, prompts: no/p.txt}": ["preview.prompts: no/p.txt is not there", "one prompt per line"],
    "track.wandb_mode=on": ["track", "wandb_mode is 'on'", "offline"],
    "trainer.source={name: stream, loss_frames: 7}": [
        "loss_frames: 7 latent frames do not fill",
        "use 6 or 9",
    ],
    "trainer.source={name: stream, min_new_frames: 21}": [
        "min_new_frames 21 leaves no overlap",
        "write at most 18",
    ],
    "trainer.source={name: stream, max_frames: 100}": [
        "max_frames: 100 latent frames do not fill",
        "use 99 or 102",
    ],
    "trainer.source={name: stream, max_frames: [240, 18]}": ["max_frames is [240, 18]", "write at least 21"],
    "trainer.source={name: stream, max_frames: 60.5}": ["max_frames is 60.5", "write latent frames"],
    "trainer.source={name: stream, max_frames: long}": [
        "max_frames is 'long'",
        "write latent frames",
        "[40, 80, 120]",
    ],
    "generation.cache={window_frames: 4, sink_frames: 3}": [
        "window_frames 4",
        "write at least 6",
    ],
    "generation.cache={window_frames: 9, recache_frames: 6}": [
        "recache_frames is 6",
        "at least",
    ],
    "trainer.source={name: stream, prompts: ''}": [
        "trainer.source",
        "prompts is empty",
        "one prompt per line",
    ],
    "trainer.source={name: stream, switch_frames: 21}": [
        "switch_prompts",
        "switch_range",
        "none of the three",
    ],
    "trainer.source={name: stream, switch_prompts: %switch}": ["switch_frames", "write these two, or none"],
    "trainer.source={name: stream, switch_prompts: %switch, switch_range: [240, 300]}": [
        "frame 240",
        "from 1 to 237",
    ],
    "trainer.source={name: stream, switch_prompts: %switch, switch_range: [21]}": [
        "switch_range is [21]",
        "e.g. [21, 201]",
    ],
    "trainer.source={name: stream, switch_prompts: %switch, switch_frames: 39}": [
        "trainer.source.switch_prompts: ",
        "has 240 lines but",
        "switch_prompts needs one line for each prompt",
    ],
    "trainer.source={name: stream, switch_prompts: no/s.txt, switch_frames: 39}": [
        "trainer.source.switch_prompts: no/s.txt is not there",
        "line by line",
    ],
    "trainer={source: {name: stream}, loss: {name: gan, discriminator: {layers: [1]}}}": [
        "loss gan needs real clips, which source stream does not give",
        "set trainer.source.clips",
    ],
    "trainer.source.batch=0": ["trainer.source", "batch is 0; write 1 to"],
    "trainer.source.frames={min: 6}": [
        "trainer.source",
        "frames is {'min': 6}",
        "frames: {min: 21, max: 60}",
    ],
    "trainer.source={frames: {min: 6, max: 0}}": ["trainer.source.frames.max is 0; write 1 to"],
    "trainer.source={frames: {min: 9, max: 6}}": [
        "frames is {'min': 9, 'max': 6}",
        "frames: {min: 21, max: 60}",
    ],
    "trainer.source.frames=long": ["trainer.source", "frames is 'long'", "write frames: 21"],
    "trainer.source={frames: {min: 6, max: 10}}": ["10 latent frames do not fill chunks of 3", "use 9 or 12"],
    "trainer.source={prompts: '', clips: %latents, frames: 3, loss_frames: 3}": [
        "trainer.source.clips: ",
        "holds latents of 4 x 4, the rollouts are 8 x 8",
        "write height and width",
    ],
    "trainer.source={prompts: '', clips: %latents, frames: 3, loss_frames: 3, height: 50}": [
        ": trainer.source: height 50 is not a multiple of 16",
        "use 48 or 64",
    ],
    "trainer.optim.betas=[0.9, 1.5]": ["trainer.optim", "betas.1 is 1.5; write 0 to 1"],
    "trainer.optim.weight_decay=-1": ["trainer.optim.weight_decay is -1.0; write 0 to 100"],
    "trainer.critic_optim.warmup=-5": ["trainer.critic_optim.warmup is -5; write 0 to"],
    "trainer.ema.start_step=-3": ["trainer.ema", "start_step is -3", "write 0"],
    "trainer.loss.score.shift=-3": ["trainer.loss.score.shift is -3.0; write 0.001 to 1000"],
    "trainer.critic.offload=true": ["critic.offload is for frozen roles", "write critic.offload=false"],
    "trainer.generator.lora={rank: 2, targets: zzz}": ["trainer.generator.lora.targets", "'zzz' matches", "blocks"],
    "trainer.generator.lora={rank: 2, targets: '('}": ["trainer.generator.lora.targets", "not a regular expression"],
    "trainer.teacher=null": ["loss dmd needs a teacher", "set trainer.teacher.weights"],
    "trainer.critic_updates_per_generator_update=0": [
        "trainer",
        "critic_updates_per_generator_update is 0; write 1 to",
    ],
    "trainer.loss.name=flow": ["trainer: loss flow has no update of a critic", "write trainer.name=regress"],
}


@pytest.fixture
def places(tmp_path):
    """What stands for `%name` in an override."""
    return {
        "%latents": digits_fixture.latent_folder(tmp_path / "latents"),
        "%blind": digits_fixture.link_parts(tmp_path / "blind", ("text_encoder", "tokenizer")),
        "%switch": _lines(tmp_path / "switch.txt", 3),
        "%lora": write(
            tmp_path / "l.safetensors", {"blocks.0.cross_attn.k_img": (torch.zeros(3, 8), torch.zeros(8, 3))}
        ),
        "%text": ROOT / "assets/digits/text_encoder/model.safetensors",
    }


def _lines(path, count: int):
    path.write_text("a red one moves up\n" * count)
    return path


@pytest.mark.parametrize("override", WRONG)
def test_wrong_trainings_are_refused_with_key_and_remedy(refused, places, override):
    given = override
    for name, place in places.items():
        given = given.replace(name, str(place))
    if "name: stream" in given and "prompts: ''" not in given:  # another source: the recipe's prompts are dropped
        given = given.replace("name: stream", f"name: stream, prompts: {ROOT}/prompts/digits_all.txt")
    said = refused(given)
    for words in WRONG[override]:
        assert words in said, said


def test_what_a_discriminator_taps_must_be_there(refused, places):
    clips = f"trainer.source={{prompts: '', clips: {places['%latents']}}}"
    said = refused(clips, "trainer.loss={name: gan, discriminator: {layers: [1, 4]}}")
    assert "trainer.loss.discriminator.layers: block 4 of a critic of 4 blocks; write 0..3" in said


def test_a_regression_cannot_use_generated_latents(refused):
    said = refused("trainer={name: regress, generator: {spec: digits}, source: {name: rollout, prompts: x}}")
    assert "write source.name=latents" in said and "or trainer.name=distill" in said


def test_all_problems_are_told_at_once_with_their_places(refused, recipe):
    said = refused("trainer.teacher.weights=no/t", "model=no/model", "trainer.source.prompts=no/p.txt")
    assert "3 problems before the training" in said
    keys = [line.split(": ")[1] for line in said.splitlines()[1:]]
    assert keys == ["trainer.source.prompts", "trainer.teacher.weights", "model"]
    assert all(line.startswith("command line: ") for line in said.splitlines()[1:])
    recipe.write_text(RECIPE.replace(f"critic: {{weights: {WEIGHTS}}}", "critic: {weights: no/c}"))
    line = 1 + RECIPE.splitlines().index(f"  critic: {{weights: {WEIGHTS}}}")
    assert f"{recipe}:{line}: trainer.critic.weights: no/c" in refused()


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed(refused, monkeypatch, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    said = refused(f"track.{package}=true")
    assert f"track.{package}: the package {package} is not installed" in said and "pip install -e .[track]" in said


def test_what_is_right_is_not_refused_and_reads_no_weight(recipe, monkeypatch):
    read = []
    monkeypatch.setattr("safetensors.safe_open", _watching(read))
    config, _ = load_recipe(recipe)
    assert list(preflight.find_problems(config)) == [] and read == []


def _watching(read: list):
    """Returns a `safe_open` that notes each tensor whose data is asked for."""
    import safetensors

    opened = safetensors.safe_open

    class Watched:
        def __init__(self, *arguments, **options):
            self.file = opened(*arguments, **options)

        def __enter__(self):
            self.inside = self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def get_tensor(self, name):
            read.append(name)
            return self.inside.get_tensor(name)

        def __getattr__(self, name):
            return getattr(self.inside, name)

    return Watched


def test_a_role_may_name_the_folder_of_a_whole_model(tmp_path, recipe):
    model = digits_fixture.model_folder(tmp_path / "model")
    config, _ = load_recipe(recipe, [f"trainer.generator.weights={model}", f"model={model}"])
    assert list(preflight.find_problems(config)) == []
