"""Plans the sparse digits: a bidirectional student of 8 steps and a causal one, read whole, in blocks, and trained so.

A clip of 9 frames has 144 tokens, 18 blocks of 8. `kept` counts the blocks that a block of queries reads; thresholds
are off, so it is the same for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from scripts.experiments.plan import Case, Measure, Plan, Training, VideoSet

BLOCKS, BLOCK = 18, 8
LENGTHS = {"1x": 9, "10x": 90}  # latent frames
KEPT = (6, 4, 3, 2)
TRAINED = (4, 3, 2)
HISTORY = 12  # blocks of a window of 9 frames behind a chunk of 3


@dataclass(frozen=True)
class Row:
    """One line of the tables. kept: blocks of 18 that are read, 18 = all; group: untrained, joint, tuned, causal ..."""

    title: str
    training: str
    infer: str
    kept: int = BLOCKS
    group: str = ""
    words: tuple[str, ...] = ()
    lengths: tuple[str, ...] = ("1x",)


@dataclass(frozen=True)
class Budget:
    """What a run spends: seeds, updates of the generator, videos of each length."""

    name: str
    seeds: int
    dense: int
    other: int
    videos: dict[str, VideoSet]


_ALL = VideoSet("prompts/digits_all.txt", 256, second=16)
_CPU = {"1x": VideoSet("prompts/digits_128.txt", 128), "10x": VideoSet("prompts/digits_32.txt", 32)}
BUDGETS = {
    "cpu": Budget(
        "cpu",
        1,
        600,
        300,
        _CPU,
    ),
    "short": Budget("short", 1, 300, 150, _CPU),
    "gpu": Budget("gpu", 3, 2000, 1000, {"1x": _ALL, "10x": _ALL}),
}


def sparse(kept: int, **knobs) -> tuple[str, ...]:
    """Returns the knobs of `kept` blocks of a clip for every block of queries, without the key before them."""
    share = _share(kept, BLOCKS)
    fields = {"name": "asa", "block": BLOCK, "order": "clip", "threshold": 1.0, "min": share, "max": share} | knobs
    return tuple(f"{name}={value}" for name, value in fields.items())


def causal(own: bool) -> tuple[str, ...]:
    """Returns the knobs of 2 blocks over a window: of its history, its own chunk read whole, or of all 18."""
    parts = {"dense.own": str(own).lower(), "dense.sink": "false", "dense.newest": 0}
    share = _share(2, HISTORY if own else BLOCKS)
    return sparse(2, order="frame", min=share, max=share, **parts)


def _share(kept: int, blocks: int) -> float:
    """Returns the ratio of which whole blocks are `kept`: rounded up, since a ratio's blocks are rounded down."""
    return round(kept / blocks + 5e-5, 4)


def under(key: str, words: tuple[str, ...]) -> tuple[str, ...]:
    """Returns key=value words of a configuration's group."""
    return tuple(f"{key}.{word}" for word in words)


TDM, SID = "configs/train/digits_tdm.yaml", "configs/train/digits_self_forcing_sid.yaml"
STUDENT, FEW = "configs/infer/digits_tdm.yaml", "configs/infer/digits_few_step.yaml"
CAUSAL = "assets/digits/student"
ROLE = "trainer.generator.sparse"

TRAININGS = {
    "teacher": Training(shipped="assets/digits/teacher", record="digits_teacher_training"),
    "tdm": Training(TDM),
    "control": Training(TDM, after="tdm"),
    **{f"joint_{kept}": Training(TDM, overrides=under(ROLE, sparse(kept))) for kept in TRAINED},
    **{f"tuned_{kept}": Training(TDM, overrides=under(ROLE, sparse(kept)), after="tdm") for kept in TRAINED},
    "causal": Training(shipped=CAUSAL),
    "causal_sid": Training(SID, overrides=under(ROLE, causal(False)), start=CAUSAL),
}

_TDM = Row("TDM, 8 steps", "tdm", STUDENT)
_CAUSAL = Row("causal student, 4 steps", "causal", FEW, lengths=("1x", "10x"))


def _untrained(kept: int, title: str = "", **knobs) -> Row:
    name = f"{_TDM.title}, {kept} of {BLOCKS} blocks untrained{title}"
    group = f"untrained{title}"
    return replace(_TDM, title=name, kept=kept, group=group, words=under("model.sparse", sparse(kept, **knobs)))


def _trained(kind: str, kept: int) -> Row:
    start = "from the teacher" if kind == "joint" else "from the dense student"
    return replace(
        _TDM, title=f"TDM + ASA {start}, {kept} of {BLOCKS}", training=f"{kind}_{kept}", kept=kept, group=kind
    )


ROWS = {
    "teacher": Row("teacher, 30 steps, guided", "teacher", "configs/infer/digits_teacher.yaml"),
    "tdm": _TDM,
    "control": replace(_TDM, title="TDM, trained as much longer", training="control"),
    **{f"untrained_{kept}": _untrained(kept) for kept in KEPT},
    **{f"untrained_{kept}_sampled": _untrained(kept, ", sampled probe", probe="sampled", samples=2) for kept in (3, 2)},
    "untrained_2_pooled": _untrained(2, ", pooled keys", pool=8),
    **{f"joint_{kept}": _trained("joint", kept) for kept in TRAINED},
    **{f"tuned_{kept}": _trained("tuned", kept) for kept in TRAINED},
    "causal": _CAUSAL,
    "causal_history": replace(
        _CAUSAL, title="causal student, 2 blocks of history", words=under("model.sparse", causal(True))
    ),
    "causal_all": replace(
        _CAUSAL, title="causal student, 2 of 18 blocks", kept=2, words=under("model.sparse", causal(False))
    ),
    "causal_sid": replace(
        _CAUSAL, title="causal student, 2 of 18 blocks, trained by SiD", kept=2, training="causal_sid"
    ),
}


def make_plan(budget: Budget) -> Plan:
    """Returns the plan of a budget."""
    trainings = {
        name: training
        if training.shipped
        else replace(training, updates=budget.dense if name == "tdm" else budget.other)
        for name, training in TRAININGS.items()
    }
    keys = [(row, seed, length) for row in ROWS for seed in range(budget.seeds) for length in ROWS[row].lengths]
    return Plan(budget.name, trainings, tuple(make_case(budget, *key) for key in keys), read)


def make_case(budget: Budget, name: str, seed: int, length: str) -> Case:
    """Returns one row, one seed, one length."""
    row = ROWS[name]
    window = ("generation.cache.window_frames=9",) if row.infer == FEW else ()
    return Case(
        row=name,
        name=f"{name}/seed{seed}/{length}",
        folder=f"{name}/seed{seed}/{length}",
        training=row.training,
        recipe=row.infer,
        videos=budget.videos[length],
        frames=LENGTHS[length],
        measures=(Measure(("scripts/evaluate.py", "digits", "--videos", "{videos}", "--prompts", "{prompts}")),),
        record=f"{name}_seed{seed}",
        part=length,
        seed=seed,
        overrides=(*window, *row.words),
        sheet=length == "1x",
        labels={"seed": seed, "kept": row.kept},
    )


def read(case: Case, results: list[dict]) -> tuple[int, dict]:
    """Returns the number of videos and the fields {videos, metrics, drift ...} of scripts/evaluate.py."""
    (row,) = results[0]["rows"].values()
    fields = {"videos": row["clips"], "pixel_frames": results[0]["frames"]}
    return row["clips"], fields | {key: row[key] for key in ("metrics", "drift", "frechet", "looks") if key in row}
