"""scripts/encode_prompts.py: what it writes, resumes and refuses; folders of `.pt`; trainings on what it wrote."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import train
from scripts import encode_prompts
from tests import digits_fixture, tiny
from tests.architecture.source import ROOT
from trainer.build import build
from trainer.config import load_recipe
from utils.data.encoded_prompts import EncodedPrompts
from utils.data.latents import shard_path
from utils.data.pt_prompts import find_prompts
from wan.checkpoint.parts import find_parts
from wan.config import TextConfig
from wan.encoders.text import load_text_encoder

TEXTS = [*digits_fixture.PROMPTS, "a blue seven moves up", "a white nine moves left"]
NEGATIVE = "blurred, still"


@pytest.fixture
def encode(tmp_path):
    """encode(*flags) -> exit status of a run on five prompts, shards of three."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join([*TEXTS, TEXTS[0]]))
    given = {"--model": ROOT / "assets/digits", "--prompts": prompts, "--output": tmp_path / "store"}
    given |= {"--negative_prompt": NEGATIVE, "--shard_prompts": 3, "--dtype": "fp32"}

    def run(**more) -> int:
        flags = given | {f"--{name}": value for name, value in more.items()}
        flat = [str(part) for flag, value in flags.items() if value is not None for part in (flag, value)]
        return digits_fixture.exit_status(encode_prompts.main, flat)

    run.folder, run.prompts = tmp_path / "store", prompts
    return run


def encoder():
    return load_text_encoder(find_parts(ROOT / "assets/digits"), 12, TextConfig(dtype="fp32"))


def test_the_store_is_the_encoder(encode):
    assert encode() == 0
    store = EncodedPrompts(encode.folder)
    asked = [TEXTS[3], "", NEGATIVE, *TEXTS]
    assert torch.equal(store(asked), encoder()(asked))
    assert len(list(encode.folder.glob("shard_*"))) == 3, "null, negative and five prompts in shards of three"
    listed = (encode.folder / "prompts.txt").read_text().splitlines()
    assert sorted(listed) == sorted(TEXTS) and listed != TEXTS
    with pytest.raises(ValueError, match="'a black zero' is not in .*encode_prompts.py"):
        store(["a black zero"])


def test_shuffle_and_cut_follow_the_seed(encode, tmp_path):
    lists = {}
    for seed in (1, 1, 2, -1):
        output = tmp_path / f"store_{len(lists)}_{seed}"
        assert encode(seed=seed, max_prompts=4, output=output) == 0
        lists.setdefault(seed, []).append((output / "prompts.txt").read_text().splitlines())
    assert lists[1][0] == lists[1][1] and lists[1][0] != lists[2][0]
    assert lists[-1][0] == TEXTS[:4] and all(len(found) == 4 for runs in lists.values() for found in runs)


def test_a_stopped_run_goes_on(encode, capsys):
    assert encode() == 0
    whole = {path.name: path.read_bytes() for path in encode.folder.iterdir()}
    shard_path(encode.folder, 1).unlink()
    with pytest.raises(ValueError, match="4 of its 7 prompts; .* it goes on"):
        EncodedPrompts(encode.folder)
    kept = shard_path(encode.folder, 0).stat().st_mtime_ns
    assert encode() == 0
    assert {path.name: path.read_bytes() for path in encode.folder.iterdir()} == whole
    assert shard_path(encode.folder, 0).stat().st_mtime_ns == kept
    capsys.readouterr()
    assert encode(seed=5) == 2 and "other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"prompts": None}, "--model and --prompts, or --from_pt alone"),
        ({"model": None}, "--model and --prompts, or --from_pt alone"),
        ({"max_prompts": -1}, "--max_prompts is -1; write 0 or more"),
        ({"shard_prompts": 0}, "--shard_prompts is 0; write 1 or more"),
        ({"negative_recipe": "x.yaml"}, "--negative_prompt or --negative_recipe"),
        ({"from_pt": "nowhere", "prompts": None}, "holds none of shuffled_prompts.pt"),
        ({"model": "nowhere"}, "nowhere"),
        ({"input_file": "prompts.txt"}, "--input_file is not a flag here; use --prompts"),
    ],
)
def test_wrong_flags(encode, capsys, more, why):
    assert encode(**more) == 2
    assert why in capsys.readouterr().err
    assert not encode.folder.exists() or not list(encode.folder.glob("shard_*"))


def test_a_bad_line_is_named(encode, capsys):
    encode.prompts.write_text("a red three moves right\na blue\x00one\n")
    assert encode() == 2
    assert f"{encode.prompts}, line 2" in capsys.readouterr().err


def pt_folder(folder, family: str):
    """Returns the prompts of three texts as Video-BLADE's scripts leave them."""
    (folder / "individual_embeddings").mkdir(parents=True)
    wan = family == "wan"
    torch.save(TEXTS[:3], folder / ("prompts_shuffled.pt" if wan else "shuffled_prompts.pt"))
    rows = {f"individual_embeddings/{n}.pt": n for n in range(3)} | {"fixed_prompt_embeds.pt": 3}
    rows |= {"uncond_prompt_embeds.pt": 4, "negative_prompt_embeds.pt": 5} if wan else {"uncond_prompt_embed.pt": 4}
    for name, key in rows.items():
        row = tiny.draw("embedding", key, shape=(1, 12, 64)).bfloat16()
        row[:, 5 + key :] *= not wan  # padded with zeros; T5 v1.1 has states at pads, too
        torch.save(row, folder / name)
    return folder


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_folders_of_pt_files_are_read(encode, tmp_path, family):
    folder, wan = pt_folder(tmp_path / "old", family), family == "wan"
    negative = {"negative_prompt": NEGATIVE if wan else None}
    assert encode(from_pt=folder, model=None, prompts=None, seed=-1, **negative) == 0
    store = EncodedPrompts(encode.folder)
    for n, text in enumerate(TEXTS[:3]):
        assert torch.equal(store([text])[0], torch.load(folder / f"individual_embeddings/{n}.pt", weights_only=True)[0])
    null, file = ("", "uncond_prompt_embeds.pt") if wan else (" ", "uncond_prompt_embed.pt")
    assert torch.equal(store([null])[0], torch.load(folder / file, weights_only=True)[0])
    if wan:
        kept = torch.load(folder / "negative_prompt_embeds.pt", weights_only=True)[0]
        assert torch.equal(store([NEGATIVE])[0], kept)
    assert (encode.folder / "prompts.txt").read_text().splitlines() == TEXTS[:3]


class Hostile:
    def __reduce__(self):
        return (print, ("run",))


def test_pt_folders_that_cannot_be_trusted(tmp_path):
    folder = pt_folder(tmp_path / "old", "wan")
    (folder / "individual_embeddings/1.pt").unlink()
    with pytest.raises(ValueError, match="3 prompts and 2 embeddings"):
        find_prompts(folder)
    torch.save([Hostile()], folder / "prompts_shuffled.pt")
    with pytest.raises(ValueError, match="more than tensors and texts; nothing in it is executed"):
        find_prompts(folder)
    (folder / "prompts_shuffled.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="truncated or damaged"):
        find_prompts(folder)


def test_training_on_encoded_prompts_is_training(encode, distill_of, tmp_path, monkeypatch):
    """Bit for bit, and without a text encoder in the model folder."""
    recipe = distill_of(encode.prompts)
    assert encode() == 0
    bare = tmp_path / "bare"
    shutil.copytree(ROOT / "assets/digits/vae", bare / "vae")
    encoded = [f"trainer.text={{name: encoded, path: {encode.folder}}}", f"trainer.negative_prompt={NEGATIVE}"]
    methods = [
        build(load_recipe(recipe, [f"trainer.negative_prompt={NEGATIVE}"])[0], tmp_path / "a").method,
        build(load_recipe(recipe, [*encoded, f"model={bare}"])[0], tmp_path / "b").method,
    ]
    losses = [[method.step(step)["loss"].item() for step in range(2)] for method in methods]
    assert losses[0] == losses[1] and losses[0][0] != 0


@pytest.fixture
def distill_of(tmp_path):
    """distill_of(prompts) -> a recipe of one-block networks on these prompts."""

    def made(prompts):
        recipe, _ = digits_fixture.distill_recipe(tmp_path / "distill")
        (tmp_path / "distill/prompts.txt").write_text(prompts.read_text())
        return recipe

    (tmp_path / "distill").mkdir()
    return made


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda store, record: store.rename(store.with_name("gone")), "holds no prompts.json"),
        (lambda store, record: record.update(encoder="0" * 64), "by another text encoder or tokenizer"),
        (lambda store, record: record.update(text_len=20), "20 x 64, the generator reads 12 x 64"),
        (lambda store, record: shard_path(store, 2).unlink(), "6 of its 7 prompts"),
        (lambda store, record: shard_path(store, 2).write_bytes(b"x"), "damaged or no shard"),
    ],
)
def test_unfit_stores_end_a_run_before_a_network_is_built(
    encode, distill_of, tmp_path, capsys, monkeypatch, change, why
):
    assert encode() == 0
    recipe = distill_of(encode.prompts)
    path = encode.folder / "prompts.json"
    record = json.loads(path.read_text())
    change(encode.folder, record)
    if path.exists():
        path.write_text(json.dumps(record))
    monkeypatch.setattr("trainer.roles.build_network", lambda *a, **k: pytest.fail("a network was built"))
    given = f"trainer.text={{name: encoded, path: {encode.folder}}}"
    status = digits_fixture.exit_status(
        train.main, ["--config_path", str(recipe), "--logdir", str(tmp_path / "run"), given]
    )
    said = capsys.readouterr().err
    assert status == 2 and "trainer.text.path" in said and why in said, said


def test_prompts_that_were_not_encoded_are_named(encode, distill_of, tmp_path, capsys):
    assert encode() == 0
    recipe = distill_of(encode.prompts)
    given = [f"trainer.text={{name: encoded, path: {encode.folder}}}", "trainer.negative_prompt=ugly"]
    assert (
        digits_fixture.exit_status(
            train.main, ["--config_path", str(recipe), "--logdir", str(tmp_path / "run"), *given]
        )
        == 2
    )
    assert "1 prompts of this training are not in" in (said := capsys.readouterr().err) and "'ugly'" in said
