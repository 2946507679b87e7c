"""scripts/download.sh: what it fetches and where to, and that this is all that the recipes read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import pipeline.config
import trainer.config
from tests.architecture.source import ROOT
from utils import hub
from utils.config.text import to_dict
from wan.spec import SPECS

KEYS = ("model", "path", "checkpoint", "lora", "weights", "prompts", "switch_prompts", "clips")
RECIPES = [
    path.relative_to(ROOT) for kind in ("infer", "train") for path in sorted((ROOT / "configs" / kind).iterdir())
]
MADE_HERE = "runs/"  # by a training or by scripts/encode_latents.py and scripts/make_ode_pairs.py


def sh(*words, cwd=ROOT):
    script = ROOT / "scripts/download.sh"
    return subprocess.run(["bash", script, *words], cwd=cwd, capture_output=True, text=True, timeout=20)


def read_by(recipe: Path) -> set[str]:
    """Returns the files and folders that a recipe reads."""
    room = pipeline.config if recipe.parent.name == "infer" else trainer.config
    found = set()

    def collect(tree) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                collect(value)
            elif key in KEYS and isinstance(value, str) and value:
                found.add(value)

    collect(to_dict(room.load_recipe(ROOT / recipe)[0]))
    return found


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_all_that_a_recipe_reads_is_there_or_brought(recipe):
    there = {target for targets in hub.read_downloads().values() for target in targets}
    for name in read_by(recipe):
        assert (ROOT / name).exists() or name.startswith(MADE_HERE) or Path(name) in there, f"nothing brings {name}"


def test_recipes_name_the_sets_that_they_need():
    for recipe, wanted in (("infer/longlive", {"t2v-1.3B", "longlive"}), ("infer/self_forcing_dmd", {"self-forcing"})):
        text = (ROOT / f"configs/{recipe}.yaml").read_text()
        assert wanted <= set(text.partition("scripts/download.sh ")[2].split("\n")[0].split())
    for recipe in ("longlive_init", "longlive_stream", "self_forcing_dmd"):
        advice = {hub.advise(name) for name in read_by(Path(f"configs/train/{recipe}.yaml")) if name not in ("",)}
        assert None not in advice and len(advice) == 4


def test_every_set_lands_where_the_table_says(tmp_path):
    sets = hub.read_downloads()
    lines = sh("--dry-run", *sets, cwd=tmp_path).stdout.splitlines()
    assert len(lines) == len(sets) > 10
    for line, targets in zip(lines, sets.values(), strict=True):
        words = line.split()
        folder = Path(words[words.index("--local-dir") + 1])
        files = [] if "--exclude" in words else words[3 : words.index("--local-dir")]
        assert {folder / file for file in files} | ({folder} - {Path(".")}) == set(targets), line


def test_help_names_every_published_model():
    printed = sh("--help")
    assert printed.returncode == 0
    for spec in SPECS.values():
        assert not spec.hub_name or spec.hub_name in printed.stdout
    for name in hub.read_downloads():
        assert f"  {name} " in printed.stdout


def test_another_folder_is_that_of_the_models_alone(tmp_path):
    dry = sh("--dry-run", "--dir", "here", "t2v-1.3B", "longlive", "vidprom", cwd=tmp_path).stdout.splitlines()
    assert dry[0].endswith(f"--exclude assets/* --exclude examples/* --local-dir {tmp_path}/here/Wan2.1-T2V-1.3B")
    assert f"models/longlive_base.pt models/lora.pt --local-dir {tmp_path}/here/LongLive-1.3B" in dry[1]
    assert dry[2].endswith("prompts/vidprom_filtered_extended_switch.txt --local-dir .")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give one or more names"),
        (("t2v-13B",), "unknown name t2v-13B; known: t2v-1.3B"),
        (("t2v",), "unknown name t2v;"),
        (("#",), "unknown name #;"),
        (("--force", "t2v-1.3B"), "unknown option --force"),
        (("t2v-1.3B", "--dir"), "--dir needs a folder"),
    ],
)
def test_wrong_words_are_refused(words, message):
    printed = sh(*words)
    assert printed.returncode == 2 and message in printed.stderr and printed.stdout == ""
