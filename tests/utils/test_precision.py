"""8-bit linears: the real product, its error against arithmetic, which linears, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pipeline.bundle import load_bundle, set_linears
from pipeline.config import ModelConfig
from tests import tiny
from utils import lora, precision
from utils.precision import Float8Linear, relative_error, round_e4m3, to_float8
from wan.config import WIDE_LINEARS, TextConfig, VAEConfig
from wan.context import Full
from wan.family import find_published, get_family
from wan.geometry import Geometry

# A normal e4m3 number has 3 bits behind its first: between two neighbours lies 1/8 of the power of two below them, so
# rounding errs by (1/8) / sqrt(12) of it, which is that much of a value between 1 (all of it) and 2 (half).
MOST, LEAST = (1 / 8) / 12**0.5, (1 / 16) / 12**0.5
BF16 = torch.finfo(torch.bfloat16).eps


def linear(seed: int = 0, sizes=(256, 128)) -> nn.Linear:
    made = nn.Linear(*sizes, dtype=torch.bfloat16)
    with torch.no_grad():
        made.weight.copy_(tiny.draw(seed, "w", shape=made.weight.shape) / sizes[0] ** 0.5)
        made.bias.copy_(tiny.draw(seed, "b", shape=made.bias.shape))
    return made.requires_grad_(False)


@pytest.mark.parametrize("rows", [False, True])
def test_error_is_that_of_two_rounded_factors(rows):
    """Errors of weight and activation are independent: sqrt(2) of one's, and one rounding of the sum to bf16."""
    plain, x = linear(), tiny.draw("x", shape=(64, 256)).bfloat16()
    narrow = Float8Linear(plain, rows)
    wanted = x.double() @ plain.weight.double().t()
    error = relative_error(narrow(x) - plain.bias, wanted)
    assert 2**0.5 * LEAST < error < 2**0.5 * MOST + 2 * BF16
    assert LEAST < relative_error(narrow.wide(), plain.weight) < MOST


@pytest.mark.parametrize("rows", [False, True])
def test_the_product_is_that_of_the_rounded_factors(rows):
    plain, x = linear(1), tiny.draw("x", shape=(2, 7, 256)).bfloat16()
    narrow, factor = round_e4m3(x.flatten(0, 1), rows)
    module = Float8Linear(plain, rows)
    wanted = (narrow.double() * factor) @ module.wide().double().t() + plain.bias.double()
    made = module(x)
    assert made.dtype == torch.bfloat16 and made.shape == (2, 7, 128)
    assert relative_error(made.flatten(0, 1), wanted) < BF16
    module.scale = module.scale * 1.1  # the mutation: another scale than the weight was made with
    assert relative_error(module(x).flatten(0, 1), wanted) > 0.05


def test_scales_follow_the_rule():
    """448 / max |x|, at most 448; zeros stay zeros."""
    for largest, scale in ((896.0, 0.5), (448.0, 1.0), (1.0, 448.0), (0.5, 448.0), (0.0, 448.0)):
        x = torch.full((2, 16), largest)
        narrow, factor = round_e4m3(x, rows=False)
        assert factor == pytest.approx(1 / scale) and torch.equal(narrow.float(), (x * scale).clamp(max=448))
    x = torch.tensor([[896.0] * 16, [1.0] * 16])
    assert round_e4m3(x, rows=True)[1].flatten().tolist() == pytest.approx([2.0, 1 / 448])


def test_rows_do_not_depend_on_their_batch():
    """With a scale of the whole tensor a loud neighbour changes a row, with one of each row none does."""
    x = tiny.draw("x", shape=(4, 256)).bfloat16()
    loud = torch.cat((x[:1], 1000 * x[1:]))
    for rows in (True, False):
        narrow = Float8Linear(linear(), rows)
        assert torch.equal(narrow(x)[:1], narrow(loud)[:1]) == rows


def test_published_names_are_chosen():
    """400 linears of blocks, 48 of injectors, 12 of their norms: 15.938 B of 16.296 B values."""
    spec = find_published("s2v-14B").transformer
    with torch.device("meta"):
        network = get_family(spec).network(spec).to(torch.bfloat16)
    whole = sum(p.numel() for p in network.parameters())
    chosen = to_float8(network, WIDE_LINEARS)
    kinds = [sum(part in name for name in chosen) for part in ("blocks.", "injector.injector.", "adain_layers.")]
    assert kinds == [400, 48, 12] and len(chosen) == 460
    values = sum(m.weight.numel() for m in network.modules() if isinstance(m, Float8Linear))
    assert whole == 16_295_755_609 and values == 15_938_355_200
    sizes = sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
    assert sizes == pytest.approx(16.65e9, rel=1e-3)
    left = {name for name, m in network.named_modules() if isinstance(m, nn.Linear)}
    assert all(any(kept in name for kept in WIDE_LINEARS) for name in left)


@pytest.mark.parametrize("kind", ["fp8", "fp8_rows"])
def test_networks_run_and_tell_their_error(kind):
    wide = tiny.denoiser(dtype=torch.bfloat16)
    narrow = copy.deepcopy(wide)
    set_linears(narrow, ModelConfig(linears=kind))
    assert sum(isinstance(m, Float8Linear) for m in narrow.modules()) == 2 * 10
    x, condition = tiny.latents(3, dtype=torch.bfloat16), tiny.condition(dtype=torch.bfloat16)
    with torch.no_grad():
        made, wanted = (model(x, 0.7, condition, Full()) for model in (narrow, wide))
    assert made.dtype == torch.bfloat16 and 1e-3 < relative_error(made, wanted) < 0.2


def test_to_moves_and_widens_the_bias_alone():
    module = Float8Linear(linear(), rows=True)
    before = module.weight.clone(), module.scale.clone()
    module = nn.Sequential(module).to(torch.float32)[0]
    assert module.weight.dtype == torch.float8_e4m3fn and module.scale.dtype == torch.float32
    assert torch.equal(module.weight.float(), before[0].float()) and torch.equal(module.scale, before[1])


def test_a_merged_lora_is_rounded_with_the_weight_one_beside_is_refused():
    network = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"q": linear(sizes=(32, 32))})])})
    a, b = (tiny.draw("ab", n, shape=shape) for n, shape in enumerate(((4, 32), (32, 4))))
    merged = copy.deepcopy(network)
    merged["blocks"][0]["q"].weight.add_((b @ a).bfloat16())
    wanted = merged["blocks"][0]["q"].weight.clone()
    assert to_float8(merged) == ["blocks.0.q"]
    assert LEAST < relative_error(merged["blocks"][0]["q"].wide(), wanted) < MOST
    lora.inject_pairs(network, {"blocks.0.q": (a, b, 1.0)})
    with pytest.raises(ValueError, match=r"blocks\.0\.q has a LoRA next to its weight.*lora_merge=true"):
        to_float8(network)
    assert not any(isinstance(m, Float8Linear) for m in network.modules())


def test_what_cannot_run_is_refused_by_name():
    for sizes, dtype, words in (((32, 32), torch.float32, "blocks.0 is float32"), ((32, 40), None, "multiples of 16")):
        network = nn.ModuleDict({"blocks": nn.ModuleList([linear(sizes=sizes).to(dtype or torch.bfloat16)])})
        with pytest.raises(ValueError, match=words):
            to_float8(network)
    with pytest.raises(ValueError, match="no linear"):
        to_float8(nn.ModuleDict({"head": linear()}), ("head",))


def test_a_device_without_the_product_is_named(monkeypatch):
    precision.check_float8("cpu")
    precision.check_float8("cpu", rows=True)

    def refuse(*_, **__):
        raise RuntimeError("torch._scaled_mm is only supported on CUDA devices with compute capability >= 9.0 or 8.9")

    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    with pytest.raises(ValueError, match=r"cpu has no 8-bit product.*8\.9.*model\.linears=weights"):
        precision.check_float8("cpu")


@pytest.mark.parametrize("kind", ["fp8", "fp8_rows"])
def test_the_shipped_student_keeps_its_velocity(kind):
    """At most 8 % rms over the noise levels that it runs at, of trained weights on normal noise."""
    models = [
        load_bundle(ModelConfig("assets/digits", linears=linears), VAEConfig(), TextConfig("fp32"))
        for linears in ("weights", kind)
    ]
    x = tiny.draw("x", shape=(1, 9, *Geometry.of(models[0].spec, 0, 0).latent_shape(1)[1:])).bfloat16()
    condition = models[0].condition(["a red three moves left"], None)
    with torch.no_grad():
        for sigma in (1.0, 0.9, 0.6):
            wanted, made = (model.denoiser(x, sigma, condition, Full()) for model in models)
            assert 1e-3 < relative_error(made, wanted) < 0.08


def test_a_network_that_hears_runs_with_its_injectors_in_eight_bits():
    wide = tiny.s2v_denoiser(dtype=torch.bfloat16)
    narrow = set_linears(copy.deepcopy(wide), ModelConfig(linears="fp8"))
    names = [name for name, m in narrow.named_modules() if isinstance(m, Float8Linear)]
    assert len(names) == 2 * 10 + 2 * 4 + 2 and sum("audio_injector" in name for name in names) == 10
    avatar, x = tiny.avatar(frames=3, dtype=torch.bfloat16), tiny.latents(3, geometry=tiny.S2V_GEOMETRY)
    with torch.no_grad():
        made, wanted = (model(x.bfloat16(), 0.7, avatar, Full()) for model in (narrow, wide))
    assert made.dtype == torch.bfloat16 and 1e-3 < relative_error(made, wanted) < 0.2
