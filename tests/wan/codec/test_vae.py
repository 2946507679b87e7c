"""The streaming face: any chunking gives what the library's own decode gives."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderKLWan

from tests import tolerance
from utils.config.field import check
from wan.checkpoint.library import VAE_CONFIGS, build_vae
from wan.codec.base import Codec, resolve_device
from wan.codec.vae import StreamingVAE
from wan.config import VAEConfig

pytestmark = pytest.mark.usefixtures("wide")
HALF = tolerance.rounding(terms=1, sums=40, dtype=torch.bfloat16)  # 40 convolutions and norms, summed in fp32


@pytest.fixture(scope="module", params=["vae 2.1", "vae 2.2"])
def model(request):
    """A small VAE with random weights that decodes to about the range [-1, 1]."""
    torch.manual_seed(0)
    model = build_vae(VAE_CONFIGS[request.param] | {"dim": 8, "dec_dim": 8})
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.double().eval().requires_grad_(False)


@pytest.fixture
def latents(model):
    """[2, 5, C, 2, 2], unit scale."""
    return torch.randn(2, 5, model.config.z_dim, 2, 2, generator=torch.Generator().manual_seed(1)).double()


def stream(vae, latents, sizes):
    state, pieces = None, []
    for part in latents.split(sizes, 1):
        pixels, state = vae.decode_stream(part, state)
        pieces.append(pixels)
    return torch.cat(pieces, 1)


def test_vae_has_the_face_of_a_codec(model, latents):
    vae, apart = StreamingVAE(model, VAEConfig(frames_per_pass=3)), StreamingVAE(model, VAEConfig(device="cpu"))
    assert isinstance(vae, Codec)
    assert (vae.frames_per_pass, vae.own_device, apart.own_device) == (3, None, torch.device("cpu"))
    frames = [vae.decode_stream(latents[:, :count])[0] for count in (1, 3)]
    assert [x.shape[1] for x in frames] == [vae.first_pixel_frames, vae.first_pixel_frames + 2 * vae.strides[0]]
    assert latents.shape[2] == vae.latent_channels and frames[0].shape[3] == latents.shape[3] * vae.strides[1]


def test_vae_state_is_not_written_to(model, latents):
    vae = StreamingVAE(model)
    _, state = vae.decode_stream(latents[:, :2])
    before = [x.clone() if isinstance(x, torch.Tensor) else x for x in state]
    vae.decode_stream(latents[:, 2:], state)
    assert isinstance(state, tuple) and any(isinstance(x, torch.Tensor) for x in state)
    for was, now in zip(before, state, strict=True):
        assert torch.equal(was, now) if isinstance(was, torch.Tensor) else was == now


def test_streams_equal_the_librarys_decode(model, latents):
    vae = StreamingVAE(model)
    wanted = model.decode(vae.denormalise(latents)).sample.transpose(1, 2)
    assert wanted.shape[1] == 17 and 0.05 < wanted.std() < 1
    for sizes in ([5], [1, 4], [2, 3], [1, 1, 1, 1, 1], [3, 1, 1]):
        assert (stream(vae, latents, sizes) - wanted).abs().max() <= tolerance.EXACT
    several = StreamingVAE(model, VAEConfig(frames_per_pass=3))
    assert (stream(several, latents, [1, 4]) - wanted).abs().max() <= tolerance.EXACT
    assert (vae.decode(latents) - wanted).abs().max() <= tolerance.EXACT
    slices = StreamingVAE(model, VAEConfig(slicing=True)).decode(latents)
    model.disable_slicing()
    assert (slices - wanted).abs().max() <= tolerance.EXACT


def test_lean_layers_give_what_the_librarys_own_give(model, latents):
    theirs = AutoencoderKLWan.from_config(model.config)
    theirs.double().load_state_dict(model.state_dict())
    assert any(vars(m).get("forward") for m in model.modules()) and not any(
        vars(m).get("forward") for m in theirs.modules()
    )
    pixels = torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(2)).double() * 2 - 1
    for x in (latents.transpose(1, 2), latents[:1, :1].transpose(1, 2)):
        torch.testing.assert_close(model.decode(x).sample, theirs.decode(x).sample, atol=tolerance.EXACT, rtol=0)
    encoded = [vae.encode(pixels).latent_dist.mode() for vae in (model, theirs)]
    torch.testing.assert_close(*encoded, atol=tolerance.EXACT, rtol=0)
    halves = [
        copy.deepcopy(vae).bfloat16().decode(latents.bfloat16().transpose(1, 2)).sample for vae in (model, theirs)
    ]
    torch.testing.assert_close(*halves, atol=HALF, rtol=0)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 9, 12])
def test_the_last_frame_is_that_of_the_whole_decode(model, num_frames):
    """Twelve latents are more than any part looks back, so that some of them pass a part by."""
    latents = torch.randn(2, num_frames, model.config.z_dim, 2, 2, generator=torch.Generator().manual_seed(4)).double()
    counts = []
    head = model.decoder.conv_out.register_forward_hook(lambda *_: counts.append(1))
    try:
        made = StreamingVAE(model).last_frame(latents)
    finally:
        head.remove()
    assert len(counts) == min(num_frames, 4)  # 7 convolutions of 3 taps look 14 frames back
    assert (made - StreamingVAE(model).decode(latents)[:, -1:]).abs().max() <= tolerance.EXACT
    slices = StreamingVAE(model, VAEConfig(slicing=True)).last_frame(latents)
    model.disable_slicing()
    torch.testing.assert_close(slices, made, atol=tolerance.EXACT, rtol=0)


def test_two_streams_do_not_mix_and_a_snapshot_goes_on(model, latents):
    vae = StreamingVAE(model)
    a, b = latents[:1], latents[1:]
    _, state_a = vae.decode_stream(a[:, :2])
    _, state_b = vae.decode_stream(b[:, :3])
    snapshot = list(state_a)
    first, _ = vae.decode_stream(a[:, 2:], state_a)
    vae.decode_stream(b[:, 3:], state_b)
    again, _ = vae.decode_stream(a[:, 2:], snapshot)
    assert torch.equal(first, again)
    assert (torch.cat((vae.decode_stream(a[:, :2])[0], first), 1) - vae.decode(a)).abs().max() <= tolerance.EXACT


def test_a_restarted_stream_differs(model, latents):
    vae = StreamingVAE(model)
    whole = vae.decode(latents)
    restarted, _ = vae.decode_stream(latents[:, 2:])  # as if nothing came before
    shorter = restarted.shape[1]
    assert shorter < 12 and (restarted - whole[:, -shorter:]).abs().max() > 1e-2


def test_encoding_is_the_normalised_mean(model):
    vae = StreamingVAE(model)
    pixels = torch.rand(1, 9, 3, 32, 32, generator=torch.Generator().manual_seed(2)).double() * 2 - 1
    latents = vae.encode(pixels)
    raw = model.encode(pixels.transpose(1, 2)).latent_dist.mode()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (model.config.latents_mean, model.config.latents_std))
    torch.testing.assert_close(latents, ((raw - mean) / std).transpose(1, 2))
    torch.testing.assert_close(vae.denormalise(latents), raw)
    assert latents.shape[1] == 3 and pixels.shape[3] == latents.shape[3] * vae.spatial_stride


def test_an_encoding_within_another_disturbs_neither(model):
    """As two threads may do it: each has a cache of its own."""
    vae = StreamingVAE(model)
    draw = torch.Generator().manual_seed(3)
    first, second = (torch.rand(1, 9, 3, 32, 32, generator=draw) * 2 - 1 for _ in range(2))
    wanted, others = [vae.encode(x) for x in (first, second)], []

    def during(*_):
        if not others:
            others.append(None)  # the inner one's own calls are let be
            others[0] = vae.encode(second)

    hook = model.encoder.conv_in.register_forward_hook(during)
    made = vae.encode(first)
    hook.remove()
    assert torch.equal(others[0], wanted[1])
    assert torch.equal(made, wanted[0]) and not torch.equal(*wanted)


def test_its_own_device_must_be_there(model, tmp_path):
    assert StreamingVAE(model).device == torch.device("cpu")
    assert resolve_device("vae.device", "auto", "meta") == torch.device("meta")
    assert resolve_device("vae.device", "cpu", "meta") == torch.device("cpu")
    have = torch.cuda.device_count()
    with pytest.raises(ValueError, match=rf"vae.device is cuda:{have} and this machine has {have} .* write auto, cpu"):
        resolve_device("vae.device", f"cuda:{have}", "cpu")
    for name in ("cuda", "gpu", "cuda:x", ""):
        with pytest.raises(ValueError, match="write auto, cpu, or a GPU of its own"):
            check(VAEConfig(device=name))


def test_bad_lengths_and_settings(model):
    vae = StreamingVAE(model)
    with pytest.raises(ValueError, match="4n.1 pixel frames, not 8; use 5 or 9"):
        vae.encode(torch.zeros(1, 8, 3, 32, 32))
    for config, message in (
        (VAEConfig(dtype="fp8"), "fp32 or bf16"),
        (VAEConfig(frames_per_pass=0), "frames_per_pass is 0; write 1"),
    ):
        with pytest.raises(ValueError, match=message):
            check(config)
    tiled = StreamingVAE(model, VAEConfig(tiling=True))
    with pytest.raises(ValueError, match="set vae.tiling=false"):
        tiled.decode_stream(torch.zeros(1, 1, model.config.z_dim, 4, 4))
    model.disable_tiling()
