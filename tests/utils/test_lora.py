"""LoRA is put into finished modules and filled with weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests import tolerance
from utils import lora
from wan.checkpoint.key_maps import lora_state


class Net(nn.Module):
    """Two blocks, one linear outside of them, and an attribute that others set."""

    def __init__(self):
        super().__init__()
        self.window = 3
        self.first = nn.Linear(5, 6)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"q": nn.Linear(6, 6), "ffn": nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))})
            for _ in range(2)
        )

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block["ffn"](block["q"](x))
        return x


NAMES = [f"blocks.{i}.{m}" for i in range(2) for m in ("q", "ffn.0", "ffn.2")]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def drawn(net, rank=2):
    rng = torch.Generator().manual_seed(1)
    shapes = {n: net.get_submodule(n).weight.shape for n in NAMES}
    return {
        n: (torch.randn(rank, i, generator=rng), torch.randn(o, rank, generator=rng), 1.0)
        for n, (o, i) in shapes.items()
    }


def test_injection_changes_nothing_at_first_and_trains_adapters_only(net):
    x = torch.randn(4, 5)
    before = net(x)
    assert lora.inject(net, rank=2) is net and isinstance(net, Net) and net.window == 3
    assert torch.equal(net(x), before)
    trained = [n for n, p in net.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * len(NAMES) and all("lora_" in n for n in trained)
    assert list(lora.layers(net)) == NAMES  # every linear of the blocks, and `first` not
    net(x).sum().backward()
    assert net.first.weight.grad is None and net.blocks[0]["q"].lora_B["default"].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("ranks", [(2, 2), (2, 5)])
def test_adapters_compute_the_formula(net, ranks):
    net, x = net.double(), torch.randn(4, 5).double()
    several = [drawn(net, rank) for rank in ranks]
    pairs = {n: several[i % 2][n] for i, n in enumerate(NAMES)}
    pairs = {n: (a.double(), b.double(), 0.3 + i) for i, (n, (a, b, _)) in enumerate(pairs.items())}
    merged = Net().double()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    for name, (a, b, scale) in pairs.items():
        state[f"{name}.weight"] += scale * b @ a
    merged.load_state_dict(state)
    lora.inject_pairs(net, pairs)
    torch.testing.assert_close(net(x), merged(x), rtol=tolerance.EXACT, atol=tolerance.EXACT)


@pytest.mark.parametrize("alpha, scale", [(None, 1.0), (8.0, 0.7), (1.0, 3.0)])
def test_pairs_keep_their_strength_under_another_alpha(net, alpha, scale):
    net, x = net.double(), torch.randn(4, 5).double()
    pairs = {n: (a.double(), b.double(), scale) for n, (a, b, _) in drawn(net).items()}
    wanted, other = lora.inject_pairs(Net().double(), pairs), Net().double()
    for module in (wanted, other):
        lora_free = {n.replace(".base_layer", ""): p for n, p in module.named_parameters() if "lora_" not in n}
        for name, parameter in lora_free.items():
            parameter.data.copy_(net.get_parameter(name))
    lora.load_pairs(lora.inject(other, 2, alpha), pairs)
    torch.testing.assert_close(other(x), wanted(x), rtol=tolerance.EXACT, atol=tolerance.EXACT)


def test_pairs_are_loaded_into_injected_adapters(net):
    pairs = drawn(net)
    lora.load_pairs(lora.inject(net, rank=2), pairs)
    state = net.state_dict()
    found = {n: tuple(state[f"{n}.lora_{half}.default.weight"] for half in "AB") for n in NAMES}
    assert all(torch.equal(x, y) for n in NAMES for x, y in zip(found[n], pairs[n][:2], strict=True))


def test_adapters_take_the_dtype_of_their_linear(net):
    lora.inject(net.to(torch.bfloat16), rank=2)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}


def test_peft_itself_reads_the_saved_names(net):
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    pairs = drawn(net)
    state = lora_state(pairs)
    wrapped = get_peft_model(Net(), LoraConfig(r=2, lora_alpha=2, target_modules=NAMES))
    said = set_peft_model_state_dict(wrapped, state)
    assert not said.unexpected_keys and not [k for k in said.missing_keys if "lora_" in k]
    found = dict(wrapped.named_parameters())["base_model.model.blocks.0.q.lora_A.default.weight"]
    assert torch.equal(found, pairs["blocks.0.q"][0])


def test_misfits_are_named(net):
    with pytest.raises(ValueError, match="no linear layer has a name that 'encoder' matches"):
        lora.inject(net, 2, targets="encoder")
    with pytest.raises(ValueError, match="lora.rank is 0; write 1 or more"):
        lora.inject(net, 0)
    pairs = drawn(net)
    with pytest.raises(ValueError, match="has weights for 1 layers that this model does not have: blocks.7.q"):
        lora.inject_pairs(net, pairs | {"blocks.7.q": pairs["blocks.0.q"]})
    lora.inject(net, rank=2)
    with pytest.raises(ValueError, match="has LoRA adapters already"):
        lora.inject(net, 2)
    bad = {k: v for k, v in pairs.items() if k != "blocks.1.q"} | {"x": pairs["blocks.1.q"]}
    bad["blocks.0.q"] = drawn(net.blocks and Net(), 3)["blocks.0.q"]
    with pytest.raises(ValueError) as error:
        lora.load_pairs(net, bad)
    for part in (
        "1 adapters without weights: blocks.1.q",
        "1 weights without adapter: x",
        "1 of another shape: blocks.0.q",
    ):
        assert part in str(error.value)
