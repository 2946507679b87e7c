"""Plans the digits table: every training objective at one and ten times the training length."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scripts.experiments.plan import Case, Dataset, Measure, Plan, Training, VideoSet

LENGTHS = {"1x": 9, "10x": 90}  # latent frames; the models were trained on those of 1x
CURVE_WINDOWS = {"10x": 10}  # stretches of a video in the curves, each as long as a training clip


@dataclass(frozen=True)
class Row:
    """Describes one line of the table: weights and how they are sampled. lengths: those that apply."""

    title: str
    training: str
    infer: str = "configs/infer/digits_few_step.yaml"
    lengths: tuple[str, ...] = ("1x", "10x")


@dataclass(frozen=True)
class Budget:
    """Says what a run of the whole table spends. updates: of the generator, by training. pairs: ODE pairs."""

    name: str
    seeds: int
    pairs: int
    updates: dict[str, int]
    videos: dict[str, VideoSet]


LATENTS = "runs/digits_latents"
PAIRS = "runs/digits_ode_pairs"
CLIPS, SHARD = 8000, 32  # encoded clips; clips or pairs in a shard

_VIDEOS_256 = VideoSet("prompts/digits_all.txt", 256, second=16)
BUDGETS = {
    "cpu": Budget(
        "cpu",
        1,
        960,
        {"teacher_forcing": 3000, "ode": 3000, "dmd": 1500, "causvid": 600, "sid": 600, "gan": 600},
        {"1x": VideoSet("prompts/digits_128.txt", 128), "10x": VideoSet("prompts/digits_32.txt", 32)},
    ),
    "gpu": Budget(
        "gpu",
        3,
        1920,
        {"teacher_forcing": 5000, "ode": 3000, "dmd": 2000, "causvid": 2000, "sid": 2000, "gan": 2000},
        {"1x": _VIDEOS_256, "10x": _VIDEOS_256},
    ),
}

TRAININGS = {
    "teacher": Training(
        "configs/train/digits_teacher.yaml", shipped="assets/digits/teacher", record="digits_teacher_training"
    ),
    "diffusion_forcing": Training(
        "configs/train/digits_diffusion_forcing.yaml",
        shipped="assets/digits/transformer",
        record="digits_causal_training",
    ),
    "teacher_forcing": Training("configs/train/digits_teacher_forcing.yaml", needs=("latents",)),
    "ode": Training("configs/train/digits_ode_init.yaml", needs=("ode_pairs",)),
    "dmd": Training("configs/train/digits_self_forcing_dmd.yaml"),
    "causvid": Training("configs/train/digits_causvid.yaml", needs=("latents",)),
    "sid": Training("configs/train/digits_self_forcing_sid.yaml"),
    "gan": Training("configs/train/digits_self_forcing_gan.yaml", needs=("latents",)),
}

_MANY = "configs/infer/digits.yaml"
ROWS = {
    "teacher": Row("teacher (bidirectional)", "teacher", "configs/infer/digits_teacher.yaml", ("1x",)),
    "diffusion_forcing": Row("diffusion forcing", "diffusion_forcing", _MANY),
    "teacher_forcing": Row("teacher forcing", "teacher_forcing", _MANY),
    "diffusion_forcing_4": Row("diffusion forcing, 4 steps, not distilled", "diffusion_forcing"),
    "teacher_forcing_4": Row("teacher forcing, 4 steps, not distilled", "teacher_forcing"),
    "ode": Row("ODE regression", "ode"),
    "causvid": Row("CausVid", "causvid"),
    "dmd": Row("Self-Forcing, DMD", "dmd"),
    "sid": Row("Self-Forcing, SiD", "sid"),
    "gan": Row("Self-Forcing, GAN", "gan"),
}


def make_plan(budget: Budget) -> Plan:
    """Returns the plan of a budget."""
    trainings = {name: replace(own, updates=budget.updates.get(name)) for name, own in TRAININGS.items()}
    keys = [(row, seed, length) for row in ROWS for seed in range(budget.seeds) for length in ROWS[row].lengths]
    return Plan(budget.name, trainings, tuple(make_case(budget, *key) for key in keys), read, make_data(budget))


def make_case(budget: Budget, row: str, seed: int, length: str) -> Case:
    """Returns one row, one seed, one length."""
    name = f"{row}/seed{seed}/{length}"
    words = ("scripts/evaluate.py", "digits", "--videos", "{videos}", "--prompts", "{prompts}")
    measures = [Measure(words)]
    if length in CURVE_WINDOWS:
        measures.append(Measure((*words, "--windows", str(CURVE_WINDOWS[length])), "_curve"))
    return Case(
        row=row,
        name=name,
        folder=name,
        training=ROWS[row].training,
        recipe=ROWS[row].infer,
        videos=budget.videos[length],
        frames=LENGTHS[length],
        measures=tuple(measures),
        record=f"{row}_seed{seed}",
        part=length,
        seed=seed,
        sheet=length == "1x",  # long videos make an unreadable sheet
        labels={"seed": seed},
    )


def make_data(budget: Budget) -> dict[str, Dataset]:
    """Returns the data that trainings need: encoded clips as scripts/build_digits.sh makes them, the teacher's pairs.

    The pairs are those that configs/train/digits_ode_init.yaml asks for.
    """
    encode = f"digits --vae assets/digits/vae --clips {CLIPS} --batch 8 --shard_clips {SHARD} --output {LATENTS}"
    pairs = f"--teacher configs/infer/digits_teacher.yaml --student {TRAININGS['ode'].recipe} "
    pairs += f"--prompts prompts/digits_all.txt --pairs {budget.pairs} --batch 8 --shard_pairs {SHARD}"
    return {
        "latents": Dataset(LATENTS, -(-CLIPS // SHARD), ("scripts/encode_latents.py", *encode.split())),
        "ode_pairs": Dataset(
            PAIRS,
            -(-budget.pairs // SHARD),
            ("scripts/make_ode_pairs.py", *pairs.split(), "--shift", "3", "--guidance", "3"),
        ),
    }


def read(case: Case, results: list[dict]) -> tuple[int, dict]:
    """Returns the number of videos and the fields {videos, pixel_frames, metrics, drift, frechet, looks, curve}."""
    (row,) = results[0]["rows"].values()
    fields = {"videos": row["clips"], "pixel_frames": results[0]["frames"]}
    fields |= {name: row[name] for name in ("metrics", "drift", "frechet", "looks") if name in row}
    if case.part in CURVE_WINDOWS:
        (row,) = results[1]["rows"].values()
        fields["curve"] = {metric: values["windows"] for metric, values in row["drift"].items()}
    return fields["videos"], fields
