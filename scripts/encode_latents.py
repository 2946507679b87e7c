"""Encodes clips to latents for training.

    python scripts/encode_latents.py digits --vae assets/digits/vae --clips 6000 --output runs/digits_latents

Resumable: shards that are there are kept. A shard holds 32 clips and appears whole.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import log

SHARD_CLIPS = 32


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("digits",))
    parser.add_argument("--vae", required=True, help="a VAE folder or file")
    parser.add_argument("--clips", type=int, default=6000)
    parser.add_argument("--frames", type=int, default=33, help="pixel frames of a clip, 4n+1")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=2, help="number of the endless set of clips")
    parser.add_argument("--batch", type=int, default=4)
    return parser.parse_args()


def main() -> int:
    """Renders, encodes and writes shard by shard."""
    flags = parse()
    import torch

    from utils.data.latents import write_shard
    from wan.library import load_vae
    from wan.vae import StreamingVAE, check_pixel_frames

    try:
        check_pixel_frames(flags.frames)
        torch.set_num_threads(1)
        vae = StreamingVAE(load_vae(flags.vae)).eval()
    except (ValueError, OSError) as error:
        print(f"encode_latents.py: {error}", file=sys.stderr)
        return 2
    for number in log.progress(range(-(-flags.clips // SHARD_CLIPS)), label="shards", unit="shard"):
        if (flags.output / f"shard_{number:05d}.safetensors").exists():
            continue
        latents, prompts = encode_digits(vae, number, flags)
        write_shard(flags.output, number, latents, prompts)
    return 0


def encode_digits(vae, number: int, flags: argparse.Namespace):
    """Returns (latents [N, F, C, h, w] fp16, prompts) of one shard."""
    import numpy as np
    import torch

    from utils.data.digits import random_clip

    rows, prompts = [], []
    for start in range(0, SHARD_CLIPS, flags.batch):
        numbers = range(number * SHARD_CLIPS + start, number * SHARD_CLIPS + min(start + flags.batch, SHARD_CLIPS))
        pairs = [random_clip(i, flags.frames, flags.seed) for i in numbers]
        pixels = torch.from_numpy(np.stack([clip for clip, _ in pairs])).permute(0, 1, 4, 2, 3) * 2 - 1
        with torch.no_grad():
            rows.append(vae.encode(pixels).half())
        prompts += [prompt for _, prompt in pairs]
    return torch.cat(rows), prompts


if __name__ == "__main__":
    raise SystemExit(main())
