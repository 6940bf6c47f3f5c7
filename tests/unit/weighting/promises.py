"""Which promise holds for which member, and where not, why not: what the tests go by, and the docs show."""

from dataclasses import dataclass

from multitask.weighting.base import JacobianMethod, Scalarization
from tests.unit.weighting.members import NAMES, NEEDS_THREE, make, number_of_tasks

PROMISES = {
    "exact": "1",
    "batch": "2",
    "resume": "3",
    "trainer": "4",
    "missing": "5",
    "hard": "6",
    "own": "7",
    "every": "`every`",
    "groups": "`groups`",
    "rescale": "`rescale`",
    "features": "`features`",
    "weighted": "`weighted`",
    "example": "`example`",
}
"""The promises, and the keys that lie around a member, with the heads of their columns."""


@dataclass(frozen=True)
class Note:
    """What is to be said of a promise and a member."""

    why: str
    holds: bool = True
    """Whether it holds all the same; otherwise what cannot work is refused."""


def _of(names: str, why: str, holds: bool = True) -> dict[str, Note]:
    return dict.fromkeys(names.split(), Note(why, holds))


SCALARIZATIONS = [name for name in NAMES if isinstance(make(name, 3), Scalarization)]
HALVES = [name for name in NAMES if getattr(make(name, 5), "rows", "task") == "half"]
READS_JACOBIAN = "db_mtl excess_mtl graddrop gradnorm lr_annealing m_config moco trimmed_mean"
POSITIVE = "gls loss_balanced si"
"""Take the logarithm of a loss, and say so where there is none."""

NOTES: dict[str, dict[str, Note]] = {
    "batch": _of(
        "iwmtl",
        "weighs all examples of a batch together: accumulation and several processes are refused",
        False,
    )
    | _of(" ".join(HALVES), "the halves are those of one large batch where each part of it is even")
    | _of(READS_JACOBIAN, "reads the Jacobian itself, so that m·n numbers more are moved between processes"),
    "missing": _of(
        "iwmtl",
        "an example without a label has no loss to weigh: tasks with `missing=true` are refused",
        False,
    )
    | _of(" ".join(HALVES), "a task takes part where both halves of the batch have a label of it")
    | _of("pcd", "the trunk rests where the primary task has no label"),
    "hard": _of(" ".join(NEEDS_THREE), "fewer than three tasks are refused")
    | _of(POSITIVE, "a loss that is not above zero is refused")
    | _of("famo", "a loss that is under its bound is refused")
    | _of("db_mtl", "a loss below zero is refused"),
    "own": _of("weighted_sum scheduled_sum", "the sum of the losses until weights are given")
    | _of("excess_mtl", "the mean of the gradients in its first epochs")
    | _of("dwa", "the sum of the losses in its first two epochs")
    | _of("gradnorm imtl_l relobralo", "the sum of the losses in its first step")
    | _of("ntk", "the sum of the losses until traces are known, which the model has to give")
    | _of("softadapt", "the mean of the losses in its first step"),
    "every": _of("db_mtl graddrop m_config moco trimmed_mean", "gives a gradient and no weights", False)
    | _of("iwmtl", "the next batch has other examples", False),
    "groups": _of("imtl imtl_l uw", "its trained numbers belong to no group", False),
    "features": _of(
        "db_mtl excess_mtl gradnorm lr_annealing m_config moco",
        "needs the gradients of the parameters",
        False,
    )
    | _of(" ".join(SCALARIZATIONS), "has no task gradients", False),
    "weighted": _of("db_mtl graddrop m_config moco trimmed_mean", "gives a gradient and no weights", False)
    | _of(" ".join(SCALARIZATIONS), "its heads get their weighted gradient anyway", False),
    "example": _of(" ".join(SCALARIZATIONS), "weighs no gradients", False)
    | _of("graddrop trimmed_mean", "gives a gradient and no weights", False)
    | _of(
        "cr_mogm db_mtl excess_mtl gradnorm gradvac imtl lr_annealing m_config moco modo pcd sdmgrad",
        "keeps one number per task, and examples come and go",
        False,
    ),
}


def keeping(promise: str) -> list[str]:
    """Return the members for which a promise holds."""
    notes = NOTES.get(promise, {})
    return [name for name in NAMES if name not in notes or notes[name].holds]


def refusing(promise: str) -> list[str]:
    """Return the members for which it cannot hold."""
    return [name for name in NAMES if name not in keeping(promise)]


def noted(promise: str, name: str) -> bool:
    """Return whether there is something to be said."""
    return name in NOTES.get(promise, {})


def is_jacobian_method(name: str) -> bool:
    return isinstance(make(name, number_of_tasks(name)), JacobianMethod)
