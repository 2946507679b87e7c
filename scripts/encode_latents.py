"""Encodes clips to latents for training.

    python scripts/encode_latents.py digits --vae assets/digits/vae --clips 6000 --output runs/digits_latents
    torchrun --nproc_per_node=8 scripts/encode_latents.py folder --vae models/Wan2.1-T2V-1.3B/Wan2.1_VAE.pth \\
        --input videos --frames 81 --height 480 --width 832 --fps 16 --output runs/wan_latents
    python scripts/encode_latents.py talking --vae models/Wan2.2-S2V-14B/Wan2.1_VAE.pth \\
        --ear models/Wan2.2-S2V-14B/wav2vec2-large-xlsr-53-english --input talks --height 704 --width 384 \\
        --output runs/talking_latents
    python scripts/encode_latents.py lmdb --input runs/wan_latents --output runs/wan_latents.lmdb --num_shards 16

`folder`: videos or images, each with a caption of the same name (.txt) next to it. `talking`: videos with sound and
captions, each encoded behind its portrait at rest: a picture of the same name, or a frame from elsewhere in the video;
with the features of its sound. `lmdb`: shards of latents or of
ODE pairs as an LMDB in Self-Forcing's layout, which the sources read too.
Resumable: shards that are there are kept, and a shard appears whole; ranks, and other runs of the same command, share
the shards. A shard remembers what made it: another VAE, length, size or rate, a file or caption
that has changed is refused, and new files are added. What a folder holds besides captioned media is named.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import hub, log
from utils.digest import content_hash
from utils.door import check_folder, door
from utils.parallel import ranks

logger = logging.getLogger("scripts.encode_latents")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("encode_latents.py", description=__doc__, formatter_class=form)
    commands = parser.add_subparsers(required=True, metavar="digits|folder|talking|speaking_digits|lmdb")
    digits = commands.add_parser("digits", help="digits clips, drawn here")
    digits.add_argument("--clips", type=int, default=6000)
    digits.add_argument("--seed", type=int, default=2, help="number of the endless set of clips")
    digits.set_defaults(run=run_digits, frames=33, batch=4)
    folder = commands.add_parser("folder", help="videos or images with captions")
    folder.add_argument("--input", type=Path, required=True, help="<name>.mp4 or <name>.png next to <name>.txt")
    folder.add_argument("--fps", type=float, default=0.0, help="take frames at this rate (default: the video's own)")
    folder.set_defaults(run=run_folder, frames=81, batch=1)
    talking = commands.add_parser("talking", help="videos of who speaks, with captions")
    talking.add_argument("--input", type=Path, required=True, help="<name>.mp4 next to <name>.txt, perhaps <name>.png")
    talking.add_argument("--ear", type=Path, required=True, help="a wav2vec2 folder")
    talking.add_argument("--fps", type=float, default=25.0, help="the model's; frames are taken at this rate")
    talking.add_argument("--left", type=float, default=8.0, help="seconds of sound that a chunk is heard with")
    talking.add_argument("--look_ahead", type=float, default=0.0, help="and behind its end")
    talking.add_argument("--lead", type=int, default=0, help="frames by which the picture leads the sound")
    talking.add_argument("--window", choices=("chunk", "file"), default="chunk", help="file: the sound in one pass")
    talking.add_argument("--chunk", type=int, default=3, help="latent frames that are heard together")
    talking.add_argument("--seed", type=int, default=0, help="of the frames that become portraits")
    talking.set_defaults(run=run_talking, frames=81)
    for command in (folder, talking):
        command.add_argument("--height", type=int, required=True)
        command.add_argument("--width", type=int, required=True)
        command.add_argument("--resize", choices=("crop", "stretch"), default="crop", help="how a clip gets its size")
        command.add_argument(
            "--on_bad", choices=("stop", "skip"), default="stop", help="what to do with unusable files"
        )
    speaking = commands.add_parser(
        "speaking_digits", help="talking digits, drawn here, with what their sound is heard as"
    )
    speaking.add_argument("--clips", type=int, default=640)
    speaking.add_argument("--seed", type=int, default=3, help="number of the endless set of clips")
    speaking.add_argument("--ear", type=Path, default=Path("assets/digits_s2v/audio_encoder"), help="a wav2vec2 folder")
    speaking.add_argument("--left", type=float, default=4.0, help="seconds of sound that a chunk is heard with")
    speaking.set_defaults(run=run_speaking, frames=81, batch=4, chunk=3)
    store = commands.add_parser("lmdb", help="shards as an LMDB")
    store.add_argument("--input", type=Path, required=True, help="a folder of shards")
    store.add_argument("--output", type=Path, required=True)
    store.add_argument("--num_shards", type=int, default=0, help="0 = one environment, else folders shard_<k>")
    store.set_defaults(run=run_lmdb)
    for command in (digits, folder, speaking):
        batch = command.get_default("batch")
        command.add_argument("--batch", type=int, default=batch, help="clips encoded together")
    for command in (digits, folder, talking, speaking):
        frames = command.get_default("frames")
        command.add_argument("--vae", required=True, help="a VAE folder or file")
        command.add_argument("--frames", type=int, default=frames, help="pixel frames of a clip, 4n+1")
        command.add_argument("--output", type=Path, required=True)
        command.add_argument("--shard_clips", type=int, default=32, help="clips in a shard")
        command.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the VAE")
    return parser.parse_args(arguments)


@door("encode_latents.py", "run again to go on with the next shard")
def main(arguments: list[str] | None = None) -> None:
    """Ends with status 0 (done), 2 (bad input or a full disk) or 130 (interrupted)."""
    flags = parse(arguments)
    log.setup()
    check_folder(flags.output)
    flags.run(flags)


def load(flags: argparse.Namespace):
    """Returns the VAE on its device. Errors: ValueError for sizes that it does not take."""
    import torch

    from wan.checkpoint.identify import family_of_vae
    from wan.codec.vae import check_pixel_frames
    from wan.config import VAEConfig

    for name, most in {"batch": 4096, "shard_clips": 10**6, "clips": 10**9, "frames": 10**5}.items():
        if name in flags and not 1 <= vars(flags)[name] <= most:
            raise ValueError(f"--{name} is {vars(flags)[name]}; write 1 to {most}")
    check_pixel_frames(flags.frames)
    hub.check(flags.vae)
    device = torch.device("cuda", ranks.local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    vae = family_of_vae(flags.vae).open_vae(flags.vae, VAEConfig(dtype=flags.dtype), device)
    if "height" in flags and (flags.height % vae.spatial_stride or flags.width % vae.spatial_stride):
        raise ValueError(f"--height and --width must be multiples of the VAE's stride {vae.spatial_stride}")
    return vae


def encode(vae, clips: list):
    """Returns fp16 latents [N, F, C, h, w] on the CPU of clips [P, 3, H, W]."""
    import torch

    with torch.no_grad():
        return vae.encode(torch.stack(clips).to(vae.mean.device)).half().cpu()


def settings(flags: argparse.Namespace, *names: str) -> dict:
    """Returns what decides the latents, as the output remembers it."""
    known = {name: vars(flags)[name] for name in ("frames", "dtype", *names)}
    return {"vae": content_hash({"vae": flags.vae}), **known}


def run_digits(flags: argparse.Namespace) -> None:
    """Renders, encodes and writes shard by shard."""
    import torch

    from utils.data.provenance import EncodedShards, missing_shards

    torch.set_num_threads(1)
    vae = load(flags)
    shards = EncodedShards(flags.output, {"kind": "digits", **settings(flags, "seed", "shard_clips")})
    for number in missing_shards(flags.output, ranks.split(range(-(-flags.clips // flags.shard_clips)))):
        shards.write(number, *encode_digits(vae, number, flags))


def encode_digits(vae, number: int, flags: argparse.Namespace):
    """Returns (latents [N, F, C, h, w] fp16, prompts) of one shard."""
    import torch

    from utils.digits.world import random_clip

    rows, prompts, first = [], [], number * flags.shard_clips
    for start in range(first, first + flags.shard_clips, flags.batch):
        numbers = range(start, min(start + flags.batch, first + flags.shard_clips))
        pairs = [random_clip(i, flags.frames, flags.seed) for i in numbers]
        rows.append(encode(vae, [torch.from_numpy(clip).permute(0, 3, 1, 2) * 2 - 1 for clip, _ in pairs]))
        prompts += [prompt for _, prompt in pairs]
    return torch.cat(rows), prompts


def run_folder(flags: argparse.Namespace) -> None:
    """Encodes a folder of videos or images, shard by shard. Files that have come since an earlier run come last."""
    from utils.data.media_folder import list_media
    from utils.data.provenance import EncodedShards, file_facts, missing_shards

    kind, media, found = list_media(flags.input)
    for sentence in found.left_out(media):
        logger.warning("%s: %s", flags.input, sentence)
    if kind == "image":
        flags.frames = 1
    vae = load(flags)
    captions = read_captions(media, found.captions, flags.on_bad)
    facts = {path.name: file_facts(path, caption) for path, caption in captions.items()}
    shards = EncodedShards(flags.output, {"kind": kind, **settings(flags, "height", "width", "fps", "resize")})
    groups = shards.groups(facts, flags.shard_clips)
    for number in missing_shards(flags.output, ranks.split(list(groups))):
        group = {flags.input / name: captions[flags.input / name] for name in groups[number]}
        if (made := encode_files(vae, group, flags)) is not None:
            latents, prompts, used = made
            shards.write(number, latents, prompts, [facts[name] for name in groups[number]], used)


def run_speaking(flags: argparse.Namespace) -> None:
    """Renders and encodes talking digits, each behind its still, with features of its sound and a reference latent."""
    import torch

    from utils.data.provenance import EncodedShards, missing_shards
    from wan.audio.config import AudioConfig
    from wan.audio.features import load_hidden_states

    torch.set_num_threads(1)
    vae, ear = load(flags), load_hidden_states(flags.ear)
    heard = {**vars(AudioConfig(left=flags.left)), "chunk": flags.chunk}
    told = {"kind": "speaking digits", "ear": content_hash({"ear": flags.ear}), **heard}
    shards = EncodedShards(flags.output, {**told, **settings(flags, "seed", "shard_clips")})
    for number in missing_shards(flags.output, ranks.split(range(-(-flags.clips // flags.shard_clips)))):
        latents, prompts, extra = encode_talks(vae, ear, number, flags)
        shards.write(number, latents, prompts, extra=extra)


def encode_talks(vae, ear, number: int, flags: argparse.Namespace):
    """Returns (latents, prompts, {audio, reference}) of one shard of talking digits, in fp16."""
    import torch

    from utils.digits.speaking import FPS, RATE, random_talk
    from utils.media.audio import ArraySound
    from wan.audio.config import AudioConfig

    first, made, prompts = number * flags.shard_clips, [], []
    for start in range(first, first + flags.shard_clips, flags.batch):
        numbers = range(start, min(start + flags.batch, first + flags.shard_clips))
        talks = [random_talk(i, flags.frames, flags.seed) for i in numbers]
        pixels = [
            [torch.from_numpy(x / 127.5 - 1).float().movedim(-1, -3) for x in (t.picture, t.frames)] for t in talks
        ]
        sounds = [ArraySound(talk.sound, RATE) for talk in talks]
        made.append(encode_behind(vae, ear, pixels, sounds, AudioConfig(left=flags.left), FPS, flags))
        prompts += [talk.prompt for talk in talks]
    latents, audio, reference = (torch.cat(rows) for rows in zip(*made, strict=True))
    return latents, prompts, {"audio": audio, "reference": reference}


def encode_behind(vae, ear, pixels: list, sounds: list, audio, fps: float, flags: argparse.Namespace):
    """Returns (latents [N, F, C, h, w], features [N, 1, 4 F, L, W], reference [N, 1, C, h, w]) in fp16.

    pixels: of each clip its portrait [3, H, W] and frames; each is encoded behind its portrait at rest.
    """
    import torch

    from wan.audio.features import DROPPED, FeatureStream
    from wan.codec.still import behind_still, split_still
    from wan.condition import FEATURES_PER_FRAME

    reference, latents = split_still(encode(vae, [behind_still(*pair, DROPPED) for pair in pixels]))
    streams, chunk = [FeatureStream(ear, sound, audio, fps) for sound in sounds], flags.chunk * FEATURES_PER_FRAME
    heard = [stream.clip(flags.frames + DROPPED, chunk)[None].half().cpu() for stream in streams]
    return latents, torch.stack(heard), reference


def run_talking(flags: argparse.Namespace) -> None:
    """Encodes a folder of talking videos, shard by shard. Files that have come since an earlier run come last."""
    from pipeline.portrait import MULTIPLE
    from utils.config.field import check
    from utils.data.provenance import EncodedShards, missing_shards
    from utils.data.talking_media import list_talking, talking_facts, unused_pictures
    from wan.audio.config import AudioConfig
    from wan.audio.features import load_hidden_states

    audio = AudioConfig(flags.window, flags.left, flags.look_ahead, flags.lead)
    check(audio)
    if flags.height % MULTIPLE or flags.width % MULTIPLE or min(flags.height, flags.width) < MULTIPLE:
        raise ValueError(f"--height and --width of talking videos must be multiples of {MULTIPLE}")
    if not 1 <= flags.fps <= 240 or not 1 <= flags.chunk <= 64:
        raise ValueError(f"--fps is {flags.fps:g}, --chunk {flags.chunk}; write 1 to 240 and 1 to 64")
    videos, pictures, found = list_talking(flags.input)
    for sentence in (*found.left_out(videos), unused_pictures(videos, pictures)):
        if sentence:
            logger.warning("%s: %s", flags.input, sentence)
    vae = load(flags)
    ear = load_hidden_states(flags.ear, vae.mean.device)
    captions = read_captions(videos, found.captions, flags.on_bad)
    facts = {path.name: talking_facts(path, text, pictures.get(path.stem)) for path, text in captions.items()}
    told = {"kind": "talking", "ear": content_hash({"ear": flags.ear}), "fps": flags.fps}
    heard = ("left", "look_ahead", "lead", "window", "chunk", "seed")
    shards = EncodedShards(flags.output, {**told, **settings(flags, "height", "width", "resize", *heard)})
    groups = shards.groups(facts, flags.shard_clips)
    for number in missing_shards(flags.output, ranks.split(list(groups))):
        group = {flags.input / name: captions[flags.input / name] for name in groups[number]}
        if (made := encode_talking(vae, ear, audio, group, pictures, flags)) is not None:
            latents, prompts, used, extra = made
            shards.write(number, latents, prompts, [facts[name] for name in groups[number]], used, extra)


def encode_talking(vae, ear, audio, group: dict[Path, str], pictures: dict[str, Path], flags: argparse.Namespace):
    """Returns (latents, prompts, names, {audio, reference}) of talking videos, or None if none can be used."""
    import torch

    from utils.data.records import BadRecord, check_finite
    from utils.data.talking_media import read_talking
    from utils.rng import Rng

    size, rng, made, used = (flags.height, flags.width), Rng(flags.seed, "talking"), [], {}

    def read(path: Path):
        picture = pictures.get(path.stem)
        frames, portrait, sound = read_talking(path, picture, flags.frames, size, flags.fps, flags.resize, rng)
        try:
            rows = encode_behind(vae, ear, [(portrait, frames)], [sound], audio, flags.fps, flags)
        except ValueError as error:  # of the sound, which is read as it is heard
            raise BadRecord(str(error)) from error
        return [check_finite(row, str(path)) for row in rows]

    for path, prompt, rows in usable(group, read, flags.on_bad):
        made.append(rows)
        used[path.name] = prompt
    if not made:
        return None
    latents, heard, reference = (torch.cat(rows) for rows in zip(*made, strict=True))
    return latents, list(used.values()), list(used), {"audio": heard, "reference": reference}


def read_captions(media: list[Path], captions: dict[str, Path], on_bad: str) -> dict[Path, str]:
    """Returns the caption of each file; with `skip` files without a usable one are named and left out.

    Errors: ValueError naming those files; for a folder without any caption.
    """
    from utils.data.media_folder import read_caption
    from utils.data.media_kinds import listed
    from utils.data.records import BadRecord

    texts, bad = {}, []
    for path in media:
        try:
            texts[path] = read_caption(path, captions.get(path.stem))
        except BadRecord as error:
            bad.append(str(error))
    more = f"; {len(bad)} files have no usable caption" if len(bad) > 1 else ""
    if bad and (on_bad == "stop" or not texts):
        raise ValueError(f"{bad[0]}{more}; or write --on_bad skip")
    if bad:
        logger.warning("skipped %d files without a usable caption: %s", len(bad), listed(bad))
    return texts


def usable(group: dict[Path, str], read, on_bad: str):
    """Yields (file, its caption, what `read` makes of it); one that cannot be used stops the run, or is left out."""
    from utils.data.records import BadRecord

    for path, prompt in group.items():
        try:
            made = read(path)
        except BadRecord as error:
            if on_bad == "stop":
                raise ValueError(f"{error}; or write --on_bad skip") from error
            logger.warning("skipped: %s", error)
            continue
        yield path, prompt, made


def encode_files(vae, group: dict[Path, str], flags: argparse.Namespace):
    """Returns (latents, prompts, names) of files with their captions, or None if none can be used."""
    import torch

    from utils.data.media_folder import read_clip

    rows, clips, prompts, files = [], [], [], []

    def read(path: Path):
        return read_clip(path, flags.frames, (flags.height, flags.width), flags.fps, flags.resize)

    for path, prompt, clip in usable(group, read, flags.on_bad):
        prompts.append(prompt)
        files.append(path.name)
        clips.append(clip)
        if len(clips) == flags.batch:
            rows.append(encode(vae, clips))
            clips = []
    if clips:
        rows.append(encode(vae, clips))
    return (torch.cat(rows), prompts, files) if rows else None


def run_lmdb(flags: argparse.Namespace) -> None:
    """Writes the shards of a folder as an LMDB."""
    from utils.data.latents import LatentFolder, read_facts
    from utils.data.lmdb_store import write_lmdb
    from utils.data.pairs import PairFolder

    if flags.num_shards < 0:
        raise ValueError(f"--num_shards is {flags.num_shards}; write 0 (one environment) or more")
    paths = sorted(flags.input.glob("shard_*.safetensors"))
    if not paths:
        raise ValueError(f"{flags.input} holds no shard_*.safetensors; check the path")
    if "sigmas" in read_facts(paths[0]):
        pairs = PairFolder(flags.input)
        count = write_lmdb(flags.output, (pairs[i] for i in range(len(pairs))), flags.num_shards, pairs.sigmas)
    else:
        clips = LatentFolder(flags.input)
        count = write_lmdb(flags.output, (clips[i] for i in range(len(clips))), flags.num_shards)
    logger.info("%s holds %d rows", flags.output, count)


if __name__ == "__main__":
    raise SystemExit(main())
