"""Builds a W&B workspace for a comparison, offline, and saves it online."""

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from multitask import quiet_loggers  # noqa: F401  # isort: skip
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from multitask.evaluation.board import Board
from multitask.evaluation.errors import ComparisonError

STEP = "trainer/global_step"  # the x axis of every run
METHOD = wr.Config("method")
MOST_GROUPS = 100  # W&B draws ten by default
MOST_SCATTERS = 6
# Over the seeds of a method. W&B has no confidence interval.
OVER_SEEDS: dict[str, Any] = {"groupby": METHOD, "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
WAIT = 10  # seconds for an answer of the server


def workspace(
    board: Board, project: str, entity: str = "", scatter: Sequence[Sequence[str]] | None = None
) -> Any:
    """Return the workspace of a board.

    `scatter`: pairs of task/metric to plot against each other; None for all pairs of tasks, six at most.
    """
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"Comparison: {board.experiment}",
        sections=[_comparison(board, scatter), *(_task(board, task) for task in board.metrics), _training()],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=MOST_GROUPS),
        runset_settings=ws.RunsetSettings(
            filters=_filters(board),
            pinned_columns=[
                "config:method",
                "config:variant",
                "config:seed",
                *(f"summary:{key}" for key in board.keys.values()),
            ],
        ),
    )


def save(made: Any, replace: str | None = None) -> str:
    """Save a workspace to W&B, and return its address.

    Without an entity it is saved under the user's. `replace`: address of an earlier workspace to replace.
    """
    import wandb

    with _no_question():
        try:
            if not made.entity:
                made.entity = wandb.Api(timeout=WAIT).default_entity or ""
            if replace:
                old = ws.Workspace.from_url(replace)
                old.name, old.sections = made.name, made.sections
                old.settings, old.runset_settings = made.settings, made.runset_settings
                made = old
            made.save()
            return str(made.url)
        except wandb.errors.UsageError as error:
            raise ComparisonError(
                "W&B needs a login: run `wandb login` or set WANDB_API_KEY, or write the workspace to a "
                "file with output=workspace.json."
            ) from error
        except (wandb.errors.Error, ValueError, KeyError, TypeError, IndexError, OSError) as error:
            raise ComparisonError(
                f"W&B did not accept the workspace of project={made.project} ({' '.join(str(error).split())}); check "
                "the network, project, entity and replace, or write it to a file with output=workspace.json."
            ) from error


def _comparison(board: Board, scatter: Sequence[Sequence[str]] | None) -> Any:
    panels: list[Any] = []
    if board.delta_m:
        title = "Δm, % against single-task training (lower is better)"
        panels.append(_bars(title, custom_expressions=[board.delta_m]))
    column = wr.ParallelCoordinatesPlotColumn
    columns = [column(METHOD, display_name="method")]
    columns += [
        # Up is better on every axis.
        column(wr.SummaryMetric(key), display_name=name, inverted=name in board.lower)
        for name, key in board.keys.items()
    ]
    panels += [
        wr.ScatterPlot(
            title=f"{x} and {y}",
            x=wr.SummaryMetric(board.keys[x]),
            y=wr.SummaryMetric(board.keys[y]),
            legend_template="${config:method} ${config:variant} seed ${config:seed}",
        )
        for x, y in _pairs(board, scatter)
    ]
    panels += [
        wr.ParallelCoordinatesPlot(title="Every value of every run", columns=columns),
        wr.RunComparer(diff_only="split"),
    ]
    return _section("Comparison", panels, is_open=True)


def _pairs(board: Board, scatter: Sequence[Sequence[str]] | None) -> list[tuple[str, str]]:
    if scatter is None:
        firsts = {name.partition("/")[0]: name for name in reversed(board.keys)}
        return list(itertools.islice(itertools.combinations(reversed(firsts.values()), 2), MOST_SCATTERS))
    for pair in scatter:
        if len(pair) != 2 or any(name not in board.keys for name in pair):
            raise ComparisonError(
                f"scatter={list(pair)}: give pairs of task/metric; choices: {', '.join(board.keys)}."
            )
    return [(pair[0], pair[1]) for pair in scatter]


def _task(board: Board, task: str) -> Any:
    curves = {"training loss": f"train/loss/{task}", "validation loss": f"val/loss/{task}"}
    curves |= {f"validation {name}": f"val/{task}/{name}" for name in board.metrics[task]}
    curves["weight"] = f"weight/{task}"
    panels = [_lines(f"{task}: {title}", y=[key]) for title, key in curves.items()]
    panels += [_bars(n, metrics=[key]) for n, key in board.keys.items() if n.partition("/")[0] == task]
    return _section(task, panels)


def _training() -> Any:
    return _section(
        "Conflict and cost",
        [
            _lines("Cosine between task gradients", metric_regex="^conflict/cosine/.*"),
            _lines("Seconds per step", y=["cost/step"]),
            _lines("Seconds per step for the task gradients", y=["cost/task_gradients"]),
            _lines("Seconds per step for the weights", y=["cost/solver"]),
        ],
    )


def _bars(title: str, **what: Any) -> Any:
    return wr.BarPlot(title=title, max_bars_to_show=MOST_GROUPS, **what, **OVER_SEEDS)


def _lines(title: str, **what: Any) -> Any:
    return wr.LinePlot(title=title, x=STEP, max_runs_to_show=MOST_GROUPS, **what, **OVER_SEEDS)


def _section(name: str, panels: list[Any], is_open: bool = False) -> Any:
    layout = ws.SectionLayoutSettings(columns=2, rows=max(1, -(-len(panels) // 2)))
    return ws.Section(name=name, panels=panels, is_open=is_open, layout_settings=layout)


def _filters(board: Board) -> list[Any]:
    """Return filters for the experiment's training runs that did not fail."""
    filters = [
        expr.Config("experiment_name") == board.experiment,
        expr.Metric("JobType") == "train",
        expr.Metric("State").isin(["finished", "running"]),
    ]
    return filters + ([expr.Metric("Group").isin(list(board.sweeps))] if board.sweeps else [])


@contextmanager
def _no_question() -> Iterator[None]:
    """Make W&B raise an error instead of asking for a key at the terminal."""
    asked = sys.stdin
    with open(os.devnull) as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = asked
