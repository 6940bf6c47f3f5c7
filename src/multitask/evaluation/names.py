"""Names under which logs and records keep figures of a whole run: a task or metric of that name would hide one.

No heavy import: configs are checked by it before torch is loaded.
"""

from collections.abc import Iterable, Mapping

COMBINED = "combined"
"""The task under which the record keeps the weighting's own scalar of the losses."""

DELTAS = ("delta_m", "delta_p")
"""Changes that others derived: shown, never averaged or tested."""

TASKS: Mapping[str, str] = {
    COMBINED: "the record keeps the weighting's own scalar of the losses under this name",
    "mean": "<split>/mean/<metric> is the mean over tasks",
    "loss": "<split>/loss/<task> is the loss of a task",
}
"""Task names that logs and records cannot tell from something else, and what that is."""

METRICS: Mapping[str, str] = {
    "loss": "every task's loss is logged and recorded under this name",
    **dict.fromkeys(DELTAS, "the record keeps changes against a baseline under this name"),
}
"""The same for the names of metrics."""


def renamed(name: str, kind: str) -> str:
    """Return a name to take instead; `kind`: task or metric."""
    return f"{name.strip('_').replace('.', '_')}_{kind}"


def conflict(rows: Iterable[Mapping[str, str]], own: bool) -> str | None:
    """Return what is wrong with the names in a record, None where nothing is.

    Args:
        rows: The record's rows, of which `task` and `metric` are read.
        own: Whether this is the record of a run; a table of another origin may quote changes task by task.
    """
    pairs = {(row["task"], row["metric"]): None for row in rows}
    measured = {task for task, metric in pairs if metric not in DELTAS}
    for task, metric in pairs:
        of_whole_run = task == COMBINED and metric in ("loss", *DELTAS)
        if task in TASKS and not of_whole_run:
            return f"a task called '{task}', and {TASKS[task]}; rename it there, for example {renamed(task, 'task')}"
        if own and metric in DELTAS and task in measured - {COMBINED}:
            return (
                f"a metric called '{metric}', and {METRICS[metric]}; rename it there, for example "
                f"{renamed(metric, 'metric')}"
            )
    return None
