"""Encodes prompts before a training, which then needs no text encoder: `trainer.text={name: encoded, path: FOLDER}`.

    python scripts/encode_prompts.py --model assets/digits --prompts prompts/digits_all.txt --output runs/digits_prompts
    torchrun --nproc_per_node=8 scripts/encode_prompts.py --model models/Wan2.1-T2V-1.3B --prompts prompts.txt \\
        --negative_recipe configs/train/tdm_wan.yaml --seed 42 --max_prompts 10000 --output runs/wan_prompts
    python scripts/encode_prompts.py --from_pt wanx/prompts --negative_prompt "..." --output runs/wan_prompts

The prompts are shuffled by --seed, each once, and cut after --max_prompts; `prompts.txt` of the output lists them as
they were encoded, for the source of the training. The empty prompt and the negative one are encoded, too. A line that
cannot be used is named, and so is one that the encoder does not read to its end. Resumable: shards that are there are
kept, a shard appears whole, and ranks share them; other settings than those of the folder are refused. `--from_pt`
takes the embeddings from a folder of Video-BLADE's scripts instead.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import hub, log  # noqa: E402
from utils.door import check_folder, door  # noqa: E402
from utils.flags import read_flags  # noqa: E402
from utils.parallel import ranks  # noqa: E402

RENAMED = {  # of Video-BLADE
    "--input_file": "--prompts",
    "--output_dir": "--output",
    "--model_path": "--model",
    "--batch_size": "--batch",
    "--device": "nothing: the GPU where there is one; CUDA_VISIBLE_DEVICES chooses among several",
    "--save_separate": "nothing: shards are written",
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("encode_prompts.py", description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--model", default="", help="the model folder: its text encoder and tokenizer")
    parser.add_argument("--spec", default="", help="which model it is, where its folder holds no transformer")
    parser.add_argument("--prompts", default="", help="a text file, one prompt per line")
    parser.add_argument("--from_pt", default="", metavar="FOLDER", help="prompts that Video-BLADE's scripts encoded")
    parser.add_argument("--negative_prompt", default="", help="the text of the unconditional branch")
    parser.add_argument("--negative_recipe", default="", metavar="RECIPE", help="take that of a training recipe")
    parser.add_argument("--output", required=True, help="the folder of shards")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle; -1 = the order of the file")
    parser.add_argument("--max_prompts", type=int, default=0, help="so many of the shuffled ones; 0 = all")
    parser.add_argument("--shard_prompts", type=int, default=128, help="prompts in a shard")
    parser.add_argument("--batch", type=int, default=8, help="prompts encoded together")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16", help="of encoder and embeddings")
    return read_flags(parser, sys.argv[1:] if arguments is None else arguments, RENAMED, "write --help")


@door("encode_prompts.py", "run again to go on with the next shard")
def main(arguments: list[str] | None = None) -> None:
    """Ends with status 0 (done), 2 (bad input or a full disk) or 130 (interrupted)."""
    flags = parse(arguments)
    log.setup()
    check_flags(flags)
    check_folder(flags.output)
    if flags.negative_recipe:
        from trainer.config import load_recipe

        flags.negative_prompt = load_recipe(flags.negative_recipe)[0].trainer.negative_prompt
    texts, encode, settings = (converted if flags.from_pt else encoded)(flags)
    write(flags, texts, encode, settings)


def check_flags(flags: argparse.Namespace) -> None:
    """Raises ValueError for flags that contradict each other or numbers that mean nothing."""
    if bool(flags.from_pt) == bool(flags.prompts) or (flags.prompts and not flags.model):
        raise ValueError("give --model and --prompts, or --from_pt alone")
    if flags.negative_prompt and flags.negative_recipe:
        raise ValueError("give --negative_prompt or --negative_recipe, one of the two")
    for name, least in {"max_prompts": 0, "shard_prompts": 1, "batch": 1, "seed": -1}.items():
        if vars(flags)[name] < least:
            raise ValueError(f"--{name} is {vars(flags)[name]}; write {least} or more")


def encoded(flags: argparse.Namespace):
    """Returns (texts, encode, what decides the embeddings) of a model's own encoder."""
    import torch

    from utils.data.prompts import read_prompts, warn_cut
    from utils.digest import content_hash
    from wan.checkpoint.parts import find_parts
    from wan.checkpoint.weights import read_weights
    from wan.config import TextConfig
    from wan.family import find_published, get_family

    lines = read_prompts(flags.prompts)
    texts = chosen(list(dict.fromkeys(line.prompt for line in lines)), flags)
    parts = find_parts(hub.resolve(flags.model))
    if not flags.spec and not parts.transformers:
        raise ValueError(f"{flags.model} holds no transformer that tells the model; write --spec, e.g. --spec t2v-1.3B")
    if flags.spec:
        spec = find_published(flags.spec).transformer
    else:
        spec = read_weights(next(iter(parts.transformers.values())), shapes_only=True).spec
    device = torch.device("cuda", ranks.local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    knobs = TextConfig(dtype=flags.dtype, batch_size=flags.batch)
    encoder = get_family(spec).open_text(parts, spec, knobs, device)
    if ranks.rank() == 0 and hasattr(encoder, "find_cut"):
        kept = set(texts)
        places = ((f"{flags.prompts}, line {line.line}", line.prompt) for line in lines if line.prompt in kept)
        warn_cut(places, encoder.find_cut, spec.text_len)
    files = {"text_encoder": parts.need("text_encoder"), "tokenizer": parts.need("tokenizer")}
    made = {"encoder": content_hash(files), "text_len": spec.text_len, "width": spec.text_dim, "dtype": flags.dtype}
    return texts, lambda part: encoder(part).cpu(), made


def converted(flags: argparse.Namespace):
    """Returns the same of a folder of `.pt` files."""
    import torch

    from utils.data.pt_prompts import find_prompts, load_embedding

    files = find_prompts(flags.from_pt, flags.negative_prompt)
    first = load_embedding(next(iter(files.values())))

    def encode(part: list[str]) -> torch.Tensor:
        rows = [load_embedding(files[text]) for text in part]
        for text, row in zip(part, rows, strict=True):
            if row.shape != first.shape:
                raise ValueError(f"{files[text]} is {tuple(row.shape)} and the others {tuple(first.shape)}")
        return torch.stack(rows)

    special = {"", " ", flags.negative_prompt}
    texts = chosen([text for text in files if text not in special], flags, [text for text in files if text in special])
    made = {"encoder": "", "text_len": first.shape[0], "width": first.shape[1], "dtype": str(first.dtype)}
    return texts, encode, made


def chosen(texts: list[str], flags: argparse.Namespace, special: list[str] | None = None) -> list[str]:
    """Returns the null and negative prompts, then the shuffled others up to `--max_prompts`."""
    from utils.rng import Rng

    if flags.seed >= 0:
        order = Rng(flags.seed).permutation(len(texts), "prompts").tolist()
        texts = [texts[place] for place in order]
    special = ["", flags.negative_prompt] if special is None else special
    return list(dict.fromkeys([*special, *texts[: flags.max_prompts or None]]))


def write(flags: argparse.Namespace, texts: list[str], encode, made: dict) -> None:
    """Writes the shards that are missing on this rank, and the list of prompts."""
    from utils.atomic import atomic_write
    from utils.data.encoded_prompts import LIST, RECORD, write_prompts
    from utils.data.provenance import missing_shards, remember

    content = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    settings = {**made, "shard_prompts": flags.shard_prompts, "count": len(texts), "texts": content}
    settings |= {"negative": flags.negative_prompt, "seed": flags.seed, "max_prompts": flags.max_prompts}
    remember(flags.output, settings, RECORD)
    listed = [text for text in texts if text.strip() and text != flags.negative_prompt]
    if ranks.rank() == 0:
        atomic_write(Path(flags.output) / LIST, "".join(f"{text}\n" for text in listed).encode())
    size = flags.shard_prompts
    for number in missing_shards(flags.output, ranks.split(range(-(-len(texts) // size)))):
        part = texts[number * size : (number + 1) * size]
        write_prompts(flags.output, number, encode(part), part)


if __name__ == "__main__":
    raise SystemExit(main())
