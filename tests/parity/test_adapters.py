"""What the adapters read from a case: recordings changed where the result must change with them, or must not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.parity import kind_h, kind_i
from tests.parity.__main__ import compare
from tests.parity.case import Case, load_case
from tests.parity.recorded import as_recorded

CASES = Path(__file__).parent / "cases"


def load(name: str) -> Case:
    return load_case(CASES / name, torch.float64)


def insert_draw(case: Case, place: int, tensor: torch.Tensor) -> None:
    """Puts a draw before the one at `place`; the later ones move up."""
    draws = case.draws()
    for name in [name for name in case.inputs if name.startswith("draw_")]:
        del case.inputs[name]
    draws.insert(place, tensor)
    case.inputs |= {f"draw_{n:02d}": draw for n, draw in enumerate(draws)}


def run(kind, case: Case) -> dict[str, torch.Tensor]:
    with as_recorded(case.dtype):
        return kind.run(case)


@pytest.mark.parametrize("zeros", [1, 2])
def test_causvid_takes_a_draw_for_each_zero(zeros):
    """Nobody draws the clean entries here, so the recorded numbers stay."""
    case = load("H_causvid_generator")
    knobs = case.config["config"]["args"]
    count = len(knobs["denoising_step_list"])
    for _ in range(zeros):
        knobs["denoising_step_list"] = [*knobs["denoising_step_list"], 0]
        insert_draw(case, count, torch.full_like(case.inputs["clean_latent"], torch.nan))
    assert compare(run(kind_h, case), case.outputs(), case)[2]


def test_causvid_leaves_a_chunk_at_zero_clean():
    case = load("H_causvid_generator")
    knobs = case.config["config"]["args"]
    count = len(knobs["denoising_step_list"])
    knobs["denoising_step_list"] = [*knobs["denoising_step_list"], 0]
    insert_draw(case, count, torch.full_like(case.inputs["clean_latent"], 1e3))
    draw = f"draw_{count + 1:02d}"
    case.inputs[draw] = torch.full_like(case.inputs[draw], count)
    made, clean = run(kind_h, case)["pred_latent"], case.inputs["clean_latent"]
    assert (made - clean).abs().max() < 0.1, "the least sigma of their table is left"


@pytest.mark.parametrize(("last", "same"), [(15, True), (6, False)])
def test_slice_last_frames_says_what_carries_gradient(last, same):
    case = load("I_ll_rollout")
    case.config["config"]["pipeline_kwargs"]["slice_last_frames"] = last
    made, wanted = run(kind_i, case), case.outputs()
    assert torch.allclose(made["output_latent"], wanted["output_latent"], atol=1e-6)
    assert torch.allclose(made["gradD_norm"], wanted["gradD_norm"], rtol=1e-6) == same


def test_slice_last_frames_of_the_case_comes_first():
    case = load("I_ll_rollout")
    case.config["config"]["slice_last_frames"] = 6
    assert not torch.allclose(run(kind_i, case)["gradD_norm"], case.outputs()["gradD_norm"], rtol=1e-6)


def test_rollout_reads_whether_its_steps_are_warped():
    case = load("I_sf_rollout_i2v")
    case.config["denoising_step_list_used"] = list(case.config["config"]["denoising_step_list_before_warp"])
    assert not torch.allclose(run(kind_i, case)["output_latent"], case.outputs()["output_latent"], atol=1e-3)


def test_gan_head_tells_its_classes_and_time_embedding():
    case = load("H_gan_critic")
    head, dim = case.weights["gan_head"], case.weights["gan_head"]["_cls_pred_branch.1.weight"].shape[0]
    wide = {"_cls_pred_branch.0.weight": 0, "_cls_pred_branch.0.bias": 0, "_cls_pred_branch.1.weight": 1}
    for name, axis in wide.items():
        more = head[name].narrow(axis, 0, dim)
        head[name] = torch.cat((head[name], more), axis)
    for name in ("_cls_pred_branch.3.weight", "_cls_pred_branch.3.bias"):
        head[name] = torch.cat((head[name], -head[name], 2 * head[name]))
    made = run(kind_h, case)
    assert made["noisy_real_logit"].shape == made["noisy_fake_logit"].shape == (1, 3)
    assert made["gan_D_loss"].isfinite() and not torch.equal(made["gan_D_loss"], case.outputs()["gan_D_loss"])


@pytest.mark.parametrize("entries", [1, 300])
def test_noise_augmentation_takes_the_noisiest_entries(entries):
    """The recorded case has none: with it, what is predicted is another, and every draw is used."""
    case = load("H_causal_diffusion")
    plain = run(kind_h, case)["pred_x0"]
    case.config["config"]["args"]["noise_augmentation_max_timestep"] = entries
    case.inputs["draw_02_randint"] = case.inputs["draw_01_randint"] % entries
    assert (run(kind_h, case)["pred_x0"] - plain).abs().max() > 1e-3


def test_noise_augmentation_without_a_clean_half_changes_nothing():
    case = load("H_causal_diffusion")
    args = case.config["config"]["args"]
    args["teacher_forcing"] = False
    plain = run(kind_h, case)
    args["noise_augmentation_max_timestep"] = 300
    case.inputs["draw_02_randint"] = case.inputs["draw_01_randint"] % 300
    assert torch.equal(run(kind_h, case)["loss"], plain["loss"])
