"""Says what a weight file is, and converts between the official names, the libraries' and ours.

    python scripts/convert_weights.py inspect FILE_OR_FOLDER ...
    python scripts/convert_weights.py convert SRC DST --to official|diffusers|longtake
    python scripts/convert_weights.py merge BASE LORA[:STRENGTH] ... DST --to official|diffusers|longtake

Nothing is recomputed: converting there and back gives the same bits. DST is a folder (config.json and
weights), or for `longtake`, and for official VAEs and encoders, one file.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import hub  # noqa: E402
from utils.door import door  # noqa: E402

TARGETS = ("official", "diffusers", "longtake")
ROTARY_THETA = 10000.0  # fixed inside diffusers' transformer


@door("convert_weights.py")
def main(argv: list[str] | None = None) -> None:
    """Runs one subcommand."""
    args = build_parser().parse_args(argv)
    hub.check(*getattr(args, "paths", ()), *([args.src] if "src" in args else []))
    args.run(args)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all subcommands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="inspect|convert|merge")
    inspecting = commands.add_parser("inspect", help="say what files are, by their keys")
    inspecting.add_argument("paths", nargs="+", type=Path, metavar="FILE_OR_FOLDER")
    inspecting.add_argument("--no_check", action="store_true", help="do not compare the checksums of torch archives")
    inspecting.set_defaults(run=inspect)
    turn = commands.add_parser("convert", help="write the same weights under other names")
    turn.add_argument("src", type=Path, metavar="SRC")
    turn.set_defaults(run=convert)
    join = commands.add_parser("merge", help="add LoRAs into their base")
    join.add_argument("src", type=Path, metavar="BASE")
    join.add_argument("lora", nargs="+", metavar="LORA[:STRENGTH]", help="a file, or peft's folder")
    join.add_argument("--alpha", type=float, help="LoRA alpha; left out: what each file says, else its rank (scale 1)")
    join.set_defaults(run=merge)
    for sub, default in ((turn, None), (join, "longtake")):
        sub.add_argument("dst", type=Path, metavar="DST")
        sub.add_argument("--to", choices=TARGETS, required=default is None, default=default)
        sub.add_argument("--use_ema", action="store_true", help="the averaged weights of a training checkpoint")
        sub.add_argument("--role", choices=("generator", "critic"), default="generator")
        sub.add_argument("--expert", default="", help="low_noise_model or high_noise_model of a model with two")
        sub.add_argument("--overwrite", action="store_true")
    return parser


# ---- inspect --------------------------------------------------------------------------------------


def inspect(args):
    """Prints a description of each path; a model directory is described part by part."""
    from wan.checkpoint.tensor_file import check_archive

    for path in args.paths:
        lines = describe(path)
        if not args.no_check:
            for file in [path] if path.is_file() else sorted(path.glob("*.pt*")):
                check_archive(file)
        print("\n".join(lines))


def describe(path: Path) -> list[str]:
    """Returns the lines to print about one path."""
    from wan.checkpoint.identify import identify
    from wan.checkpoint.lora import is_lora_folder
    from wan.checkpoint.parts import find_parts

    if not path.is_dir() or is_lora_folder(path):
        return identify(path).lines()
    parts = find_parts(path) if not _is_one_model(path) else None
    if parts is None or list(parts.transformers.values()) == [path] and not parts.vae:
        return identify(path).lines()
    lines = [f"model directory {path} ({parts.layout} layout)"]
    for expert, folder in parts.transformers.items():
        lines += ["", f"[transformer{f' {expert}' if expert else ''}]", *identify(folder).lines()]
    for part in ("vae", "text_encoder", "image_encoder", "audio_encoder"):
        if found := vars(parts)[part]:
            lines += ["", f"[{part}]", *identify(found).lines()]
    return [*lines, "", f"tokenizer:  {parts.tokenizer or 'none'}"]


def _is_one_model(folder: Path) -> bool:
    """True for a folder that holds one library model's config.json and weights."""
    from wan.checkpoint import tensor_file

    config = tensor_file.read_config(folder) or {}
    return any(key in config for key in ("d_model", "base_dim", "num_attention_heads", "hidden_size"))


# ---- convert and merge ----------------------------------------------------------------------------


def convert(args):
    """Writes SRC's weights to DST under the names of --to."""
    from wan.checkpoint.identify import identify

    refuse_existing(args)
    if args.src.is_file() or _is_one_model(args.src):
        found = identify(args.src)
        if found.refused:
            raise ValueError(f"{args.src} is refused: {found.refused}")
        kind = found.kind.split(",")[0]
        if kind in ENCODERS:
            return convert_encoder(args, kind)
        if found.lora:
            raise ValueError(f"{args.src} is a LoRA; merge it into its base: convert_weights.py merge BASE LORA DST")
    convert_transformer(args)


def merge(args):
    """Writes BASE with the LoRAs added to its weights."""
    from pipeline.lora import parse_loras, plain_loras
    from utils import hub
    from wan.checkpoint.lora import add_tensors, combine, merge_lora, read_lora

    refuse_existing(args)
    entries = parse_loras(args.lora)
    loras = [read_lora(hub.resolve(e.path), role=args.role, alpha=args.alpha, strength=e.strength) for e in entries]

    def change(state, spec):
        update = combine(lora.fit(state, spec) for lora in loras)
        return merge_lora(add_tensors(state, update.added), update.pairs)

    names = tuple(replace(entry, path=Path(entry.path).name) for entry in entries)
    convert_transformer(args, change, {"merged_lora": plain_loras(names)})
    for lora in loras:
        print(f"merged {lora.summary()}")


def convert_transformer(args, change=lambda state, spec: state, notes: dict | None = None):
    """Loads a transformer, applies `change` to its state dict, checks it as a loader does and writes it."""
    from wan.checkpoint.identify import identify
    from wan.checkpoint.scales import check_finite
    from wan.checkpoint.weights import export_transformer, read_weights

    weights = read_weights(args.src, use_ema=args.use_ema, role=args.role, expert=args.expert)
    spec, state = weights.spec, change(weights.state, weights.spec)
    replace(weights, state=state).build()
    check_finite(state, str(args.src))
    if args.to == "longtake":
        identified = identify(args.src) if args.src.is_file() else None
        causal = identified.causal if identified else None
        export_transformer(args.dst, state, spec, {"causal": causal, "source": args.src.name, **(notes or {})})
    else:
        write_folder(args.dst, state, spec, args.to)
    print(f"wrote {args.dst} ({len(state)} tensors, {args.to})")


def write_folder(folder: Path, state, spec, to: str):
    """Writes a transformer's folder; the weights first, so that a folder with config.json is whole."""
    from wan.checkpoint import tensor_file
    from wan.family import get_family

    names, config = get_family(spec).layout(to, state, spec)
    theta = vars(spec).get("rope_theta", ROTARY_THETA)
    if to == "diffusers" and theta != ROTARY_THETA:
        print(f"note: diffusers itself always computes with rope_theta {ROTARY_THETA:g}, not {theta:g}")
    tensor_file.write_safetensors(folder / f"{tensor_file.STEM}.safetensors", names)
    write_config(folder, config)


def write_config(folder: Path, config: dict):
    """Writes config.json."""
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


ENCODERS = {  # kind -> (to the library's names, to official names, its configuration's builder, loader, weights' name)
    "vae 2.1": ("vae_to_diffusers", "vae_to_official", "build_vae", "load_vae", "diffusion_pytorch_model"),
    "vae 2.2": ("vae_to_diffusers", "vae_to_official", "build_vae", "load_vae", "diffusion_pytorch_model"),
    "umt5": ("text_to_transformers", "text_to_official", "build_text_model", "load_text_model", "model"),
    "clip": ("image_to_transformers", "image_to_official", "build_image_model", "load_image_model", "model"),
}


def convert_encoder(args, kind: str):
    """Converts a VAE, text or image encoder."""
    from wan.checkpoint import encoder_maps, library, tensor_file
    from wan.checkpoint.identify import find_kind
    from wan.checkpoint.key_maps import clean_names
    from wan.checkpoint.scales import apply_scales, check_finite

    forth, back, build, load, stem = ENCODERS[kind]
    if args.to == "longtake":
        raise ValueError(f"{args.src} holds a {kind}; `--to longtake` is for transformers, write official or diffusers")
    vars(library)[load](args.src, None)  # nothing is written that the loader would refuse
    state = clean_names(tensor_file.read(args.src))
    state = apply_scales({k: v for k, v in state.items() if not k.endswith("position_ids")}, str(args.src))
    check_finite(state, str(args.src))
    official = find_kind(state) == kind
    if args.to == "official":
        state = state if official else vars(encoder_maps)[back](state)
        write_official_file(args.dst, state)
    else:
        state = vars(encoder_maps)[forth](state) if official else state
        configs = {"umt5": library.TEXT_CONFIG, "clip": library.IMAGE_CONFIG} | library.VAE_CONFIGS
        model = vars(library)[build](configs[kind], "meta")
        theirs = tensor_file.read_config(args.src) if args.src.is_dir() else None
        tensor_file.write_safetensors(args.dst / f"{stem}.safetensors", state)
        write_config(args.dst, theirs or json_config(model))
    print(f"wrote {args.dst} ({len(state)} tensors, {args.to})")


def json_config(model) -> dict:
    """Returns a library model's configuration as its own `save_pretrained` would write it."""
    if hasattr(model, "to_json_string"):
        return json.loads(model.to_json_string())
    return json.loads(model.config.to_json_string(use_diff=False)) | {"architectures": [type(model).__name__]}


def write_official_file(path: Path, state):
    """Writes one file: a torch archive for .pth and .pt, else safetensors; whole or not at all."""
    import torch

    from utils.atomic import atomic_write
    from wan.checkpoint import tensor_file

    if path.suffix in (".pth", ".pt"):
        atomic_write(path, lambda file: torch.save({k: v.clone() for k, v in state.items()}, file))
    elif path.suffix == ".safetensors":
        tensor_file.write_safetensors(path, state)
    else:
        raise ValueError(f"official VAEs and encoders are single files: end {path} in .pth or .safetensors")


def refuse_existing(args):
    """Raises ValueError if DST is there and --overwrite is not, or if its name does not fit --to."""
    if args.to == "longtake" and args.dst.suffix != ".safetensors":
        raise ValueError(f"`--to longtake` writes one file: end {args.dst} in .safetensors")
    if args.dst.exists() and not args.overwrite:
        raise ValueError(f"{args.dst} exists; give --overwrite to replace it")
    if args.dst.is_dir() and (any(args.dst.glob("*.index*.json")) or args.dst.resolve() == args.src.resolve()):
        raise ValueError(f"{args.dst} holds shards, or is SRC itself; write to another folder")


if __name__ == "__main__":
    raise SystemExit(main())
