"""Names that logs and records use for values of a whole run, and that tasks and metrics cannot have.

Configs are checked against them before torch is loaded, so this module has no heavy imports.
"""

from collections.abc import Iterable, Mapping

COMBINED = "combined"
"""The task name in the record of the weighting's scalar of the losses."""

SINGLE_TASK = "single_task"
"""The method of a run that trains one task alone, the baseline of comparisons."""

DELTAS = ("delta_m", "delta_p")
"""Published changes: shown, but never averaged or tested."""

TASKS: Mapping[str, str] = {
    COMBINED: "the record uses this name for the weighting's scalar of the losses",
    "mean": "<split>/mean/<metric> is the mean over tasks",
    "loss": "<split>/loss/<task> is the loss of a task",
}
"""Reserved task names, and their meaning in logs and records."""

METRICS: Mapping[str, str] = {
    "loss": "every task's loss is logged and recorded under this name",
    **dict.fromkeys(DELTAS, "the record uses this name for changes against a baseline"),
}
"""Reserved metric names, and their meaning in logs and records."""


def logged(split: str, task: str, metric: str) -> str:
    """Return the key under which a run logs a metric."""
    return f"{split}/loss/{task}" if metric == "loss" else f"{split}/{task}/{metric}"


def renamed(name: str, kind: str) -> str:
    """Return a name to use instead; `kind`: task or metric."""
    return f"{name.strip('_').replace('.', '_')}_{kind}"


def conflict(rows: Iterable[Mapping[str, str]], own: bool) -> str | None:
    """Return what is wrong with the names in a record, None if nothing is.

    `own`: whether this is the record of a run; other tables may quote changes by task.
    """
    pairs = {(row["task"], row["metric"]): None for row in rows}
    measured = {task for task, metric in pairs if metric not in DELTAS}
    for task, metric in pairs:
        of_whole_run = task == COMBINED and metric in ("loss", *DELTAS)
        if task in TASKS and not of_whole_run:
            return f"a task named '{task}', and {TASKS[task]}; rename it there, for example {renamed(task, 'task')}"
        if own and metric in DELTAS and task in measured - {COMBINED}:
            return (
                f"a metric named '{metric}', and {METRICS[metric]}; rename it there, for example "
                f"{renamed(metric, 'metric')}"
            )
    return None
