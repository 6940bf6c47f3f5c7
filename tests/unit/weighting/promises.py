"""Which promise holds for which member, with notes: read by the tests and by the table of the docs."""

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
    "waits": "8",
    "every": "`every`",
    "groups": "`groups`",
    "rescale": "`rescale`",
    "features": "`features`",
    "weighted": "`weighted`",
    "example": "`example`",
}
"""The promises, and the config keys that wrap a member, with their column heads."""


@dataclass(frozen=True)
class Note:
    """A note on a promise for one member."""

    why: str
    holds: bool = True
    """Whether the promise holds; if not, the combination is rejected."""


def _of(names: str, why: str, holds: bool = True) -> dict[str, Note]:
    return dict.fromkeys(names.split(), Note(why, holds))


SCALARIZATIONS = [name for name in NAMES if isinstance(make(name, 3), Scalarization)]
HALVES = [name for name in NAMES if getattr(make(name, 5), "rows", "task") == "half"]
READS_JACOBIAN = "db_mtl excess_mtl graddrop gradnorm lr_annealing m_config moco trimmed_mean"
POSITIVE = "gls loss_balanced si"
"""Members that take the logarithm of a loss, and reject a loss that is not positive."""

NOTES: dict[str, dict[str, Note]] = {
    "batch": _of(
        "iwmtl",
        "weights all examples of a batch together: accumulation and several processes are rejected",
        False,
    )
    | _of(" ".join(HALVES), "the halves equal those of one large batch if every micro-batch has an even size")
    | _of(READS_JACOBIAN, "reads the Jacobian, so processes transfer m·n more numbers"),
    "missing": _of(
        "iwmtl",
        "an example without a label has no loss to weight: tasks with `missing=true` are rejected",
        False,
    )
    | _of(" ".join(HALVES), "a task takes part if both halves of the batch have labels of it")
    | _of("pcd", "the trunk is not updated if the primary task has no label"),
    "hard": _of(" ".join(NEEDS_THREE), "fewer than three tasks are rejected")
    | _of(POSITIVE, "a loss that is not positive is rejected")
    | _of("famo", "a loss below its bound is rejected")
    | _of("db_mtl", "a negative loss is rejected"),
    "own": _of("weighted_sum scheduled_sum", "equals the sum of the losses until weights are given")
    | _of("excess_mtl", "equals the mean gradient in its first epochs")
    | _of("dwa", "equals the sum of the losses in its first two epochs")
    | _of("gradnorm imtl_l relobralo", "equals the sum of the losses in its first step")
    | _of("ntk", "equals the sum of the losses until the model provides traces")
    | _of("softadapt", "equals the mean of the losses in its first step"),
    "waits": _of(
        READS_JACOBIAN + " iwmtl", "waits again, for values computed from the Jacobian on the device"
    )
    | _of("imtl", "waits again: its trainable parameters are on the device")
    | _of(POSITIVE, "waits for its losses too, because a loss that is not positive has no logarithm")
    | _of("famo", "waits for its losses too, and for those after the step"),
    "every": _of("db_mtl graddrop m_config moco trimmed_mean", "returns a gradient, not weights", False)
    | _of("iwmtl", "weights belong to the examples of one batch", False),
    "groups": _of("imtl imtl_l uw", "its trainable parameters belong to no group", False),
    "features": _of(
        "db_mtl excess_mtl gradnorm lr_annealing m_config moco",
        "needs the gradients of the parameters",
        False,
    )
    | _of(" ".join(SCALARIZATIONS), "has no task gradients", False),
    "weighted": _of("db_mtl graddrop m_config moco trimmed_mean", "returns a gradient, not weights", False)
    | _of(" ".join(SCALARIZATIONS), "its heads always get their weighted gradient", False),
    "example": _of(" ".join(SCALARIZATIONS), "does not weight gradients", False)
    | _of("graddrop trimmed_mean", "returns a gradient, not weights", False)
    | _of(
        "cr_mogm db_mtl excess_mtl gradnorm gradvac imtl lr_annealing m_config moco modo pcd sdmgrad",
        "keeps state per task, but examples change between batches",
        False,
    ),
}


def keeping(promise: str) -> list[str]:
    """Return the members for which a promise holds."""
    notes = NOTES.get(promise, {})
    return [name for name in NAMES if name not in notes or notes[name].holds]


def refusing(promise: str) -> list[str]:
    """Return the members for which a promise does not hold."""
    return [name for name in NAMES if name not in keeping(promise)]


def noted(promise: str, name: str) -> bool:
    """Return whether a member has a note on a promise."""
    return name in NOTES.get(promise, {})


def is_jacobian_method(name: str) -> bool:
    return isinstance(make(name, number_of_tasks(name)), JacobianMethod)
