"""Kind F: schedule tables, operations on them, multi-step solvers."""

from __future__ import annotations

import re

import torch

from pipeline.solver import Solver
from tests.parity.case import Case
from wan.schedule import (
    NUM_TRAIN_TIMESTEPS,
    Schedule,
    nearest_index,
    shift_sigma,
    sigma_table,
    step_sigmas,
    weight_table,
)

DEFAULT_SIGMA_MIN = 0.003 / 1.002


def run(case: Case) -> dict[str, torch.Tensor]:
    """Which of the three by what is recorded."""
    if "A" in case.inputs:
        return solvers(case)
    return operations(case) if "flow" in case.inputs else tables(case)


def tables(case: Case) -> dict[str, torch.Tensor]:
    """Tables by the shift and the list in each output's name."""
    outputs = {}
    for name in case.outputs():
        shift = float(re.match(r"shift([\d.]+)_", name)[1])
        rest = name.split("_", 1)[1]
        steps = re.search(r"(\d+)steps", rest)
        if rest == "sigmas":
            outputs[name] = sigma_table(shift)
        elif rest == "timesteps":
            outputs[name] = sigma_table(shift) * NUM_TRAIN_TIMESTEPS
        elif rest == "training_weights":
            outputs[name] = weight_table(shift)
        elif rest.startswith("warped_"):
            listed = [int(s) for s in rest.removeprefix("warped_").split("_")]
            warped = [1000 * s for s in step_sigmas([s for s in listed if s], shift)]
            outputs[name] = torch.tensor(warped + [0.0] * listed.count(0))
        elif "default_sigma_min" in rest:
            outputs[name] = (
                shift_sigma(torch.linspace(1, DEFAULT_SIGMA_MIN, int(steps[1])), shift) * NUM_TRAIN_TIMESTEPS
            )
        else:
            outputs[name] = shift_sigma(torch.linspace(1, 0, int(steps[1]) + 1)[:-1], shift) * NUM_TRAIN_TIMESTEPS
    return outputs


def operations(case: Case) -> dict[str, torch.Tensor]:
    """Every sigma through the nearest entry of the shifted table."""
    shift = case.config["config"]["shift"]
    schedule, inputs = Schedule(shift, "table"), case.inputs
    sigma = inputs["timestep"] / NUM_TRAIN_TIMESTEPS
    x0, flow = inputs["x0"], inputs["flow"]
    x = schedule.diffuse(x0, inputs["noise"], sigma)
    index = nearest_index(sigma, shift)
    table = torch.cat((sigma_table(shift), torch.zeros(1)))
    width = (table[index + 1] - table[index])[:, None, None, None]
    return {
        "x_t": x,
        "x0_from_flow": schedule.velocity_to_x0(x, flow, sigma),
        "flow_from_x0": schedule.x0_to_velocity(x, x0, sigma),
        "training_weight": schedule.weight(sigma),
        "euler_step": x + flow * width,
        "table_index": index,
        "sigma_used": schedule.rounded(sigma),
    }


def solvers(case: Case) -> dict[str, torch.Tensor]:
    """Each trajectory on the recorded toy velocity."""
    matrix, outputs = case.inputs["A"], {}
    for line in case.config["trajectories"]:
        name, steps, _, _, shift = line.split()
        walk = Solver(name, int(steps), float(shift)).start()
        x, path = case.inputs["x_T"], [case.inputs["x_T"]]
        for k, message in enumerate(walk.model_sigmas):
            velocity = torch.einsum("ij,bjhw->bihw", matrix, x) + 0.3 * torch.sin(x) * message
            x = walk.step(velocity, k, x)
            path.append(x)
        key = f"{name.replace('+', 'p')}_{steps}_shift{shift.split('.')[0]}"
        outputs[f"{key}_trajectory"] = torch.stack(path)
        outputs[f"{key}_timesteps"] = torch.tensor([round(t * NUM_TRAIN_TIMESTEPS) for t in walk.model_sigmas])
        outputs[f"{key}_sigmas"] = walk.sigmas
    return outputs
