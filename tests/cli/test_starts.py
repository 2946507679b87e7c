"""Videos that start from a picture or from the end of a video: one for all, one per line, one of a script's line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests import tolerance
from tests.architecture.source import ROOT
from tests.cli.test_images import picture
from tests.digits_fixture import PROMPTS, Door, files, videos
from utils.digits.metrics import measure_frames
from utils.digits.world import all_prompts, prompt_clip
from utils.media.image import read_image
from utils.media.mp4 import VideoWriter
from utils.media.video import read_video
from utils.metrics.video import psnr
from wan.codec.vae import open_vae

ENCODED = tolerance.rounding(terms=27 * 32, sums=40)  # 40 convolutions and norms over 27 cells of 32 channels

FPS = 8  # of the digits model


def video(path, count=13, seed=0, fps=FPS, size=32):
    """Writes a smooth video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    frame = np.asarray(Image.fromarray(cells).resize((size, size), Image.BILINEAR))
    with VideoWriter(path, fps, crf=10) as writer:
        writer.write(np.stack([np.roll(frame, 2 * n, 1) for n in range(count)]))
    return path


def facts(folder, name):
    """The JSON next to a video."""
    return json.loads((folder / f"{name}.json").read_text())


def latents(folder, name):
    """The latents next to a video."""
    return load_file(folder / f"{name}.safetensors")["latents"]


def read_end(path, pixel_frames):
    """The latents of the last frames of a video."""
    pixels = torch.from_numpy(read_video(path)[0][-pixel_frames:]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        return open_vae(ROOT / "assets/digits/vae").encode(pixels[None])[0]


@pytest.fixture
def text(prompts):
    """A file of two prompts with a blank line between them."""
    return prompts(PROMPTS[0], "", PROMPTS[1])


def test_one_video_serves_all_prompts(door, text, tmp_path):
    """The window of 3 frames is given: the last 9 pixel frames, which the video shows first."""
    out, start = tmp_path / "out", video(tmp_path / "in.mp4")
    arguments = ["--data_path", text, "--start_video", start, "output.latents=true", "batch=2"]
    assert door(*arguments, "--output_folder", out, "--num_output_frames", 5) == 0, door.error
    wanted = read_end(start, 9)
    for prompt in PROMPTS[:2]:
        made = latents(out, f"{prompt}-0")
        assert made.shape[0] == 5 and (made[:3] - wanted).abs().max() < ENCODED
        message = facts(out, f"{prompt}-0")
        assert (message["given_frames"], message["latent_frames"], message["start"]) == (3, 5, str(start))
        frames = read_video(out / f"{prompt}-0.mp4")[0]
        assert len(frames) == 17
        shown = open_vae(ROOT / "assets/digits/vae").decode(wanted[None])[0].movedim(1, 3).numpy()
        off = [np.abs(frame / 127.5 - 1 - shown[8]).mean() for frame in frames]
        assert off[8] < 0.1 and min(off[:6]) > 0.2, off
    assert (latents(out, f"{PROMPTS[0]}-0")[3:] - latents(out, f"{PROMPTS[1]}-0")[3:]).abs().max() > 1e-2
    # without the video nothing of it is there
    assert door("--data_path", text, "output.latents=true", "--output_folder", tmp_path / "no") == 0
    assert facts(tmp_path / "no", f"{PROMPTS[0]}-0")["given_frames"] == 0
    assert door(*arguments, "--output_folder", tmp_path / "no", "--num_output_frames", 5) == 0
    assert "kept though it was made with {'start': None, 'asked.length': 'latent frame 3'}" in door.error


def test_start_seconds_are_cut_to_whole_chunks(door, tmp_path):
    start = video(tmp_path / "in.mp4", 30)
    arguments = ["--prompt", PROMPTS[0], "--start_video", start, "--num_output_frames", 6]
    for seconds, chunk, given in ((0.2, 1, 1), (1.1, 1, 2), (1.2, 2, 2), (1.7, 2, 4), (1.75, 1, 4)):
        out = tmp_path / f"{seconds}"
        more = ["--start_seconds", seconds, f"generation.chunk={chunk}", "--output_folder", out]
        assert door(*arguments, *more) == 0, door.error
        assert facts(out, f"{PROMPTS[0]}-0")["given_frames"] == given, seconds


def test_without_a_window_half_of_the_video_is_given(door, tmp_path):
    arguments = ["--prompt", PROMPTS[0], "--start_video", video(tmp_path / "in.mp4", 30), "--num_output_frames", 5]
    more = ["generation.cache={window_frames: -1}", "--output_folder", tmp_path / "out"]
    assert door(*arguments, *more) == 0, door.error
    assert facts(tmp_path / "out", f"{PROMPTS[0]}-0")["given_frames"] == 2


def test_a_short_video_gives_the_chunks_it_has(door, tmp_path):
    start, out = video(tmp_path / "in.mp4", 7), tmp_path / "out"
    arguments = ["--prompt", PROMPTS[0], "--start_video", start, "--output_folder", out, "output.latents=true"]
    assert door(*arguments, "--seconds", 2) == 0, door.error
    assert facts(out, f"{PROMPTS[0]}-0")["given_frames"] == 2
    assert (latents(out, f"{PROMPTS[0]}-0")[:2] - read_end(start, 5)).abs().max() < ENCODED, "the last frames"


def test_a_folder_holds_one_for_each_line(door, text, tmp_path):
    """Blank lines count; each video alone is the video of the batch, to the rounding of the batch."""
    starts = tmp_path / "starts"
    paths = [video(starts / f"{n}.mp4", 9 + n, seed=n) for n in range(3)]
    arguments = ["--data_path", text, "output.latents=true", "batch=2", "--num_output_frames", 4]
    assert door(*arguments, "--start_video", starts, "--output_folder", tmp_path / "out") == 0, door.error
    for prompt, path in ((PROMPTS[0], paths[0]), (PROMPTS[1], paths[2])):
        assert facts(tmp_path / "out", f"{prompt}-0")["start"] == str(path)
        assert (latents(tmp_path / "out", f"{prompt}-0")[:3] - read_end(path, 9)).abs().max() < ENCODED
    images = tmp_path / "images"
    for n in range(3):
        picture(images / f"{n}.png", n)
    assert door(*arguments, "--start_image", images, "--output_folder", tmp_path / "image") == 0, door.error
    first = [latents(tmp_path / "image", f"{prompt}-0")[0] for prompt in PROMPTS[:2]]
    vae = open_vae(ROOT / "assets/digits/vae")
    for n, made in zip((0, 2), first, strict=True):
        with torch.no_grad():
            wanted = vae.encode(read_image(images / f"{n}.png", (32, 32), "crop")[None, None])[0, 0]
        assert (made - wanted).abs().max() < ENCODED
    assert facts(tmp_path / "image", f"{PROMPTS[0]}-0")["given_frames"] == 1


def test_captions_beside_the_files_are_prompts(door, tmp_path):
    for n, prompt in enumerate(PROMPTS[:2]):
        video(tmp_path / "in" / f"{n}.mp4", seed=n).with_suffix(".txt").write_text(prompt)
    assert door("--start_video", tmp_path / "in", "--seconds", 2, "--output_folder", tmp_path / "out") == 0, door.error
    assert set(videos(tmp_path / "out")) == {f"{prompt}-0.mp4" for prompt in PROMPTS[:2]}
    (tmp_path / "in/1.txt").unlink()
    said = door.fails("--start_video", tmp_path / "in", "--seconds", 2, "--output_folder", tmp_path / "out")
    assert "has no caption 1.txt for its video" in said


def test_another_rate_and_size_are_brought_to_the_videos(door, tmp_path):
    start = video(tmp_path / "in.mp4", 40, fps=2 * FPS, size=64)
    arguments = ["--prompt", PROMPTS[0], "--start_video", start, "output.latents=true", "--num_output_frames", 4]
    assert door(*arguments, "--output_folder", tmp_path / "out") == 0, door.error
    assert "runs at 16 fps, the video at 8: frames nearest in time are taken" in door.error
    frames = read_video(start)[0]
    with VideoWriter(tmp_path / "half.mp4", FPS, crf=0) as writer:
        writer.write(frames[-17::2])
    arguments[3] = tmp_path / "half.mp4"
    assert door(*arguments, "--output_folder", tmp_path / "half") == 0, door.error
    assert "nearest in time" not in door.error
    a, b = (latents(tmp_path / name, f"{PROMPTS[0]}-0") for name in ("out", "half"))
    assert (a[:3] - b[:3]).abs().max() < 0.2 * a[:3].std()


def test_lines_of_a_script_have_their_own(door, tmp_path):
    """Relative to the script; the flag serves the other lines."""
    video(tmp_path / "in/a.mp4", 20)
    picture(tmp_path / "in/b.png")
    rows = [{"video": "in/a.mp4", "start_seconds": 0.7}, {"image": "in/b.png"}, {}]
    script = tmp_path / "videos.jsonl"
    lines = [{"name": f"f{n}", "prompts": [{"text": PROMPTS[n]}], "length": 4, **row} for n, row in enumerate(rows)]
    script.write_text("".join(json.dumps(seen_clip) + "\n" for seen_clip in lines))
    arguments = ["--data_path", script, "--output_folder", tmp_path / "out", "output.latents=true", "batch=3"]
    assert door(*arguments, "--start_video", tmp_path / "in/a.mp4") == 0, door.error
    message = [facts(tmp_path / "out", f"f{n}-0") for n in range(3)]
    assert [t["given_frames"] for t in message] == [2, 1, 3]
    assert [t["start"] for t in message] == [str(tmp_path / f"in/{name}") for name in ("a.mp4", "b.png", "a.mp4")]
    for n, pixel_frames in ((0, 5), (2, 9)):
        made, given = latents(tmp_path / "out", f"f{n}-0"), message[n]["given_frames"]
        assert (made[:given] - read_end(tmp_path / "in/a.mp4", pixel_frames)).abs().max() < ENCODED


def test_what_does_not_fit_is_refused_before_any_video(door, text, prompts, tmp_path):
    good, out = video(tmp_path / "good.mp4"), tmp_path / "out"
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    picture(tmp_path / "two/0.png")
    picture(tmp_path / "two/1.png")
    three = ["generation.chunk=3", "generation.cache.window_frames=7", "--num_output_frames", 9]
    for arguments, words in (
        (["--start_video", tmp_path / "no.mp4"], f"there is no video {tmp_path / 'no.mp4'}"),
        (["--start_image", tmp_path / "no.png"], f"there is no image {tmp_path / 'no.png'}"),
        (["--start_video", tmp_path / "bad.mp4"], "bad.mp4 cannot be read as a video"),
        (["--start_image", tmp_path / "bad.mp4"], "bad.mp4 cannot be read as an image"),
        (["--start_image", tmp_path / "two"], "holds 2 images and the prompts have 3 lines"),
        (["--start_video", tmp_path / "two"], "two holds no video"),
        (["--start_video", good, "--start_image", good], "start_image and start_video each tell"),
        (["--start_video", good, "data.initial_latents=x"], "initial_latents and start_video each tell"),
        (["--start_seconds", 2], "start_seconds is 2.0 and start_video empty"),
        (["--start_video", good, "--start_seconds", -1], "start_seconds is -1"),
        (["--start_video", good, "--start_seconds", 0.1], "start_seconds is 0.1 and the first chunk lasts 0.125"),
        (["--start_video", good, "--start_seconds", 9, "--seconds", 20], "has 13 frames at 8 fps and 69 are needed"),
        (["--start_video", video(tmp_path / "s.mp4", 8), *three], "8 frames at 8 fps and 9 are needed"),
        (["--start_video", good, "--start_seconds", 1.3], "3 latent frames are given and the video has 3"),
        (["--start_video", good, "pipeline={name: bidirectional}"], "write pipeline.name=causal"),
    ):
        said = door.fails("--data_path", text, *arguments, "--output_folder", out)
        assert words in said, (arguments, said)
    assert not out.exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image": "no.png"}, "image is 'no.png'; there is no file"),
        ({"video": 3}, "video is 3; write the path of a file"),
        ({"video": ""}, "video is ''; write the path of a file"),
        ({"image": "here.png", "video": "here.png"}, "image and video both tell"),
        ({"video": "here.png", "start_seconds": 0}, "start_seconds is 0; write a number above 0"),
        ({"video": "here.png", "start_seconds": "2"}, "start_seconds is '2'"),
        ({"start_seconds": 2}, "write video too"),
        ({"vidoe": "here.png"}, "did you mean video?"),
        ({"video": "here.png"}, "here.png cannot be read as a video"),
        ({"image": "here.png"}, "here.png"),
    ],
)
def test_wrong_fields_of_a_script_are_named_with_their_line(door, tmp_path, fields, words):
    (tmp_path / "here.png").write_bytes(b"neither")
    script = tmp_path / "videos.jsonl"
    script.write_text("\n" + json.dumps({"prompts": [{"text": PROMPTS[0]}], **fields}))
    said = door.fails("--data_path", script, "--output_folder", tmp_path / "out")
    assert said.startswith(f"inference.py: {script}, line 2: ") and words in said
    assert files(tmp_path / "out") == {}


def test_a_bidirectional_model_starts_from_one_image(door, tmp_path):
    arguments = ["--prompt", PROMPTS[0], "--start_image", picture(tmp_path / "a.png"), "output.latents=true"]
    assert door(*arguments, "pipeline={name: bidirectional}", "--output_folder", tmp_path / "out") == 0, door.error
    with torch.no_grad():
        vae = open_vae(ROOT / "assets/digits/vae")
        wanted = vae.encode(read_image(tmp_path / "a.png", (32, 32), "crop")[None, None])[0, 0]
    assert (latents(tmp_path / "out", f"{PROMPTS[0]}-0")[0] - wanted).abs().max() < ENCODED


def test_the_digits_model_goes_on_with_a_clip_it_has_never_seen(model, tmp_path, capsys):
    """Handwriting, colour, direction and place go on; the given stretch is shown as the codec knows it."""
    clip, subject = prompt_clip(17, 29, seed=5)
    start, out = tmp_path / "in.mp4", tmp_path / "out"
    with VideoWriter(start, FPS, crf=10) as writer:
        writer.write(clip)
    prompt = all_prompts()[17]
    door = Door(ROOT / "configs/infer/digits.yaml", model, capsys)
    arguments = ["--prompt", prompt, "--start_video", start, "--num_output_frames", 9, "sampler.num_steps=10"]
    assert door(*arguments, "output.sheet=false", "--output_folder", out) == 0, door.error
    assert facts(out, f"{prompt}-0")["given_frames"] == 6  # the window
    seen_clip = read_video(out / f"{prompt}-0.mp4")[0]
    assert len(seen_clip) == 33 and psnr(seen_clip[:21], clip[-21:]) > 30
    new = {name: float(np.nanmean(values[0, 21:])) for name, values in measure_frames([seen_clip], [subject]).items()}
    assert min(new["digit"], new["colour"], new["direction"]) > 0.9 and new["consistency"] > 0.8, new
