"""docs/migrate.md: what it names of ours exists, and it names every key and flag of the ancestors that we know of."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

import inference
import pipeline.config
import train
import trainer.config
from scripts import migrate_config, tables
from scripts.migrate import keys, table
from tests.architecture.source import ROOT
from utils.config.text import to_dict

PAGE = (ROOT / "docs/migrate.md").read_text()
DOORS = {"train.py": train, "inference.py": inference}
OURS = re.compile(r"(configs|docs|prompts|pipeline|scripts|tests|utils|wan)/")
EXAMPLES = {
    f"{kind}-{name}": (kind, tree)
    for kind, (_, _, changes) in table.RECIPES.items()
    for name, tree in zip(changes, table.examples(kind), strict=True)
}


def rows(page: str):
    """Yields (section, heads, cells) of every row of a page's tables."""
    section, heads = "", []
    for text in page.splitlines():
        section = text if text.startswith("## ") else section
        cells = [cell.strip() for cell in text.strip("|").split("|")] if text.startswith("|") else []
        if not cells:
            heads = []
        elif not heads:
            heads = cells
        elif set(text) - set("|- "):
            yield section, heads, cells


def spans(cell: str) -> list[str]:
    """Returns what stands in backquotes."""
    return re.findall(r"`([^`]+)`", cell)


@cache
def recipe_keys() -> frozenset[str]:
    """Returns the dotted keys of all recipes."""
    found: set[str] = set()

    def collect(tree: dict, place: str) -> None:
        for key, value in tree.items():
            found.add(f"{place}{key}")
            if isinstance(value, dict):
                collect(value, f"{place}{key}.")

    for kind, room in (("train", trainer.config), ("infer", pipeline.config)):
        for path in sorted((ROOT / "configs" / kind).glob("*.yaml")):
            collect(to_dict(room.load_recipe(path)[0]), "")
    return frozenset(found)


@cache
def flags(command: str) -> frozenset[str]:
    """Returns the flags that a command of ours takes."""
    text = (ROOT / command).read_text()
    found = set(re.findall(r'"(--[\w-]+)"', text))
    return frozenset(found - set(DOORS[command].RENAMED) if command in DOORS else found)


def problems(page: str) -> list[str]:
    """Returns what the columns `ours` and `note` name of ours that is not there."""
    found = []
    for _, heads, cells in rows(page):
        for head, cell in zip(heads, cells, strict=True):
            if head.startswith("ours"):
                found += judge_cell(head, cell)
            elif head == "note":
                found += [f"no file {name}" for name in spans(cell) if OURS.match(name) and not exists(name.split()[0])]
    return found


def judge_cell(head: str, cell: str) -> list[str]:
    """Returns what one cell of ours names in vain; flags belong to a command before them, or to that of the head."""
    command, found = next(iter(spans(head)), ""), []
    for span in spans(cell):
        first, *others = span.split()
        if "<" in span:  # an output, named by what it is made of
            continue
        if first == "make":
            found += [f"no target {name}" for name in others if f"\n{name}:" not in (ROOT / "Makefile").read_text()]
            continue
        if "=" in span:
            first, others = span.partition("=")[0], []
        for word in (first, *others):
            if word.startswith("--"):
                found += [] if command and word in flags(command) else [f"{command or 'nothing'} has no flag {word}"]
            elif "/" in word or word in DOORS:
                found += [] if exists(word) else [f"no file {word}"]
                command = word if word.endswith(".py") and exists(word) else command
            elif word in others:  # a subcommand
                found += [] if f'"{word}"' in (ROOT / command).read_text() else [f"{command} has no {word}"]
            elif word not in recipe_keys():
                found.append(f"no key {word}")
    return found


def exists(path: str) -> bool:
    """Tells whether a path is there."""
    return (ROOT / path).exists()


def test_what_the_page_names_of_ours_exists():
    assert problems(PAGE) == []


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("`configs/infer/none.yaml`", "no file configs/infer/none.yaml"),
        ("`--no_such`", "inference.py has no flag --no_such"),
        ("`--lora_ckpt`", "inference.py has no flag --lora_ckpt"),
        ("`scripts/make_ode_pairs.py --captions`", "scripts/make_ode_pairs.py has no flag --captions"),
        ("`scripts/encode_latents.py zarr`", "scripts/encode_latents.py has no zarr"),
        ("`sampler.stepz=3`", "no key sampler.stepz"),
        ("`make tea`", "no target tea"),
    ],
)
def test_a_name_that_is_not_there_is_caught(cell, problem):
    assert problems(f"| theirs | ours (`inference.py`) |\n|---|---|\n| `x` | {cell} |") == [problem]


def test_the_tables_of_keys_are_those_of_the_migration():
    names = [match[2] for match in tables.BLOCK.finditer(PAGE)]
    assert names == ["keys-train", "keys-infer", "keys-dropped"]
    assert tables.BLOCK.sub(lambda m: f"{m[1]}{tables.table(m[2])}\n{m[3]}", PAGE) == PAGE


def test_every_key_that_the_migration_knows_has_a_row():
    known = {*keys.TRAINING_KEYS, *keys.SHARED_KEYS, *keys.GENERATION_KEYS}
    known |= {*keys.DROPPED, *(f"{start}*" for start in keys.PREFIXES)}
    known |= {f"*{end}" for end in keys.SUFFIXES}
    section = next(part for part in PAGE.split("\n## ") if part.startswith("Configuration keys"))
    named = {span.split(":")[0] for _, _, cells in rows(section) for span in spans(cells[0])}
    groups = {name.partition(".")[0] for name in named if "." in name}
    assert known - named - groups == set() and len(known) > 100


@pytest.mark.parametrize(("kind", "tree"), EXAMPLES.values(), ids=EXAMPLES)
def test_the_examples_of_the_tables_load(kind, tree, tmp_path):
    path = Path(tmp_path / "old.yaml")
    path.write_text(yaml.safe_dump(tree))
    _, old = migrate_config.migrate(path, kind)  # which loads the recipe
    assert "trainer" not in old.dropped


def test_every_renamed_flag_stands_in_the_page():
    named = {word for _, _, cells in rows(PAGE) for span in spans(cells[0]) for word in span.split()}
    assert {flag for door in DOORS.values() for flag in door.RENAMED} - named == set()


@pytest.mark.parametrize("door", DOORS)
def test_ancestors_flags_are_taken_or_refused_with_a_name(door):
    tried, pages = [], ("## Self-Forcing", "## LongLive", *["## Video-BLADE"] * (door == "train.py"))
    for section, heads, cells in rows(PAGE):
        if section.startswith(pages) and heads[1] == f"ours (`{door}`)":
            tried += spans(cells[0])
    assert len(tried) > 6
    assert set(tried) - flags(door) - set(DOORS[door].RENAMED) == set()
