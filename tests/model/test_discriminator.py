"""The discriminator: its reading of tapped tokens, written out with plain matrices."""

from __future__ import annotations

import math

import pytest
import torch

from model.config import DiscriminatorConfig
from model.discriminator import Discriminator
from tests import tiny
from tests.model.stand_in import BOUND, DIFFERENT
from utils.config.field import check
from wan.context import Full

LAYERS = (1, 0)  # not in order, so that a mixed up pair shows
CRITIC = tiny.denoiser(dtype=torch.float64)
SIGMA = torch.tensor([[0.7, 0.7], [0.2, 0.2]])
TORCH_EPS = 1e-5  # the classifier's first norm keeps torch's default, as in the published code


def head(layers=LAYERS, num_class=3, time_embedding=False) -> Discriminator:
    """Returns a discriminator with drawn weights."""
    config = DiscriminatorConfig(layers, 24, num_class, time_embedding=time_embedding)
    made = Discriminator(tiny.SPEC, config).double()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.4
            weight.copy_(scale * tiny.draw("head", name, shape=weight.shape, dtype=torch.float64) + 0.1)
    return made


def given():
    """Returns (latents, condition)."""
    return tiny.latents(2, 2, dtype=torch.float64).requires_grad_(True), tiny.condition(2, dtype=torch.float64)


def features(x, condition) -> list[torch.Tensor]:
    """Returns the tokens after each block, taken from what the next one (or the head) is given."""
    found, stack = [], [*CRITIC.transformer.blocks[1:], CRITIC.transformer.head]
    hooks = [m.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0])) for m in stack]
    CRITIC(x, SIGMA, condition, Full())
    for hook in hooks:
        hook.remove()
    return found


def norm(x, eps=tiny.SPEC.eps):
    """Layer norm from mean and variance."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()


def rms(x, scale):
    return x / (x.square().mean(-1, keepdim=True) + tiny.SPEC.eps).sqrt() * scale


def tanh_gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def written_out(d: Discriminator, tokens: list[torch.Tensor]) -> torch.Tensor:
    """Returns the logits [B, num_class], row by row and head by head."""
    w = dict(d.named_parameters())

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    logits = []
    for row in range(len(tokens[0])):
        read = []
        for i, layer in enumerate(LAYERS):
            at = f"readers.{i}"
            token = rms(w["registers"][i], w["register_norm.weight"])
            x = norm(tokens[layer][row]) * w[f"{at}.norm3.weight"] + w[f"{at}.norm3.bias"]
            q = rms(linear(f"{at}.q", token), w[f"{at}.norm_q.weight"])
            k = rms(linear(f"{at}.k", x), w[f"{at}.norm_k.weight"])
            v, width = linear(f"{at}.v", x), tiny.SPEC.head_dim
            mixed = []
            for start in range(0, tiny.SPEC.dim, width):
                own = slice(start, start + width)
                share = torch.softmax(k[:, own] @ q[own] / math.sqrt(width), 0)
                mixed.append(share @ v[:, own])
            token = token + linear(f"{at}.o", torch.cat(mixed))
            token = token + linear(f"{at}.ffn.2", tanh_gelu(linear(f"{at}.ffn.0", norm(token))))
            read.append(token)
        if d.time_embedding:  # the whole network's embedding of one noise level, from its own weights
            read.append(10 * CRITIC.transformer.embed_time(SIGMA[row, :1, None])[0][0, 0])
        x = norm(torch.cat(read), TORCH_EPS) * w["classify.0.weight"] + w["classify.0.bias"]
        x = linear("classify.1", x)
        logits.append(linear("classify.3", x * torch.sigmoid(x)))
    return torch.stack(logits)


def slopes(d, x, logits) -> list[torch.Tensor]:
    """Returns the gradients of a weighted sum of logits: in the latents and in every weight."""
    weighted = (logits * tiny.draw("logits", shape=logits.shape, dtype=torch.float64)).sum()
    return list(torch.autograd.grad(weighted, (x, *d.parameters())))


def test_discriminator_logits_and_gradients_written_out():
    d, (x, condition) = head(), given()
    logits, wanted = d(CRITIC, x, SIGMA, condition), written_out(d, features(x, condition))
    assert logits.shape == (2, 3) and tiny.error(tiny.healthy(logits), wanted) < BOUND
    for one, other in zip(slopes(d, x, logits), slopes(d, x, wanted), strict=True):
        assert tiny.error(one, other) < BOUND * max(1, other.abs().max()) and other.any()


def test_discriminator_time_embedding_written_out():
    d, (x, condition) = head(time_embedding=True), given()
    logits, wanted = d(CRITIC, x, SIGMA, condition), written_out(d, features(x, condition))
    assert d.classify[1].weight.shape == (tiny.SPEC.dim, 3 * tiny.SPEC.dim), "two blocks and the noise level"
    assert logits.std() > DIFFERENT and tiny.error(logits, wanted) < BOUND
    for one, other in zip(slopes(d, x, logits), slopes(d, x, wanted), strict=True):
        assert tiny.error(one, other) < BOUND * max(1, other.abs().max()) and other.any()


def test_discriminator_teaches_the_critics_time_embedding():
    (x, condition), slopes = given(), []
    for time_embedding in (False, True):
        d, critic = head(time_embedding=time_embedding), tiny.denoiser(dtype=torch.float64)
        bias = critic.transformer.time_embedding[2].bias.requires_grad_()
        slopes += torch.autograd.grad(d(critic, x, SIGMA, condition).sum(), bias)
    assert (slopes[1] - slopes[0]).abs().max() > DIFFERENT, "not by the modulation alone"


def test_discriminator_leaves_the_critic_as_it_was():
    before = set(vars(CRITIC.transformer))
    head(time_embedding=True)(CRITIC, *given()[:1], SIGMA, given()[1])
    assert set(vars(CRITIC.transformer)) == before and CRITIC.transformer.adapters == ()


def test_discriminator_reads_each_block_by_its_own_reader():
    d, (x, condition) = head(), given()
    swapped = written_out(d, features(x, condition)[::-1])
    assert tiny.error(d(CRITIC, x, SIGMA, condition), swapped) > DIFFERENT


def test_discriminator_judges_each_row_alone():
    d, (x, condition) = head(), given()
    (slope,) = torch.autograd.grad(d(CRITIC, x, SIGMA, condition)[0].sum(), x)
    assert slope[0].abs().max() > DIFFERENT and not slope[1].any()


def test_discriminator_block_that_is_not_there_is_refused():
    x, condition = given()
    with pytest.raises(ValueError, match=r"blocks \[2\] cannot be tapped"):
        head((0, 2))(CRITIC, x, SIGMA, condition)


def test_discriminator_rate_must_be_positive():
    with pytest.raises(ValueError, match="lr_scale is 0"):
        check(DiscriminatorConfig(lr_scale=0))
