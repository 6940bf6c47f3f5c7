"""Plots the trajectory of a toy problem's point over its objectives, as the papers do."""

import csv
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from multitask.module import MultiTaskModule
from multitask.nn.point import Point
from multitask.task.toys import Objective, non_dominated

_COLUMNS = ("step", "x1", "x2")


class Trajectory(Callback):
    """Saves ``trajectory.csv``, ``trajectory.png`` and ``landscape.npz`` when training ends, even after an error.

    The left plot shows the trajectory over the contours of the mean objective, with the Pareto set; the right one
    shows it in the plane of both objectives, with the Pareto front. Set and front are computed on the plot's grid.
    ``landscape.npz`` contains contours and Pareto set, for plots of many runs (``scripts/trajectories.py``).

    Args:
        lower, upper: Lower left and upper right corner of the plot.
        resolution: The number of grid points along each side.
    """

    def __init__(
        self, lower: Sequence[float] = (-10, -10), upper: Sequence[float] = (10, 10), resolution: int = 400
    ) -> None:
        if not all(a < b for a, b in zip(lower, upper, strict=True)):
            raise ValueError(
                f"callbacks.trajectory.lower={list(lower)} must be below "
                f"callbacks.trajectory.upper={list(upper)}."
            )
        self.lower, self.upper, self.resolution = lower, upper, resolution
        self.points: list[list[float]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the trajectory so far, so that a resumed run draws all of it."""
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the trajectory so far."""
        self.points = [list(point) for point in state_dict["points"]]

    def check(self, module: LightningModule) -> None:
        """Raise ``ValueError`` unless the trunk is a point in the plane and the tasks are two objectives."""
        if not isinstance(module, MultiTaskModule):
            raise ValueError("callbacks=trajectory draws trunk=point, and the model has no trunk; remove it.")
        losses = _losses(module)
        taken = [name for name in losses if name in _COLUMNS]
        if taken:
            raise ValueError(
                f"tasks.{taken[0]}: trajectory.csv has a column of this name already; rename the task, for example "
                f"objective_{taken[0]}."
            )
        trunk = module.trunk
        if not isinstance(trunk, Point) or trunk.point.shape != (2,):
            raise ValueError("callbacks=trajectory draws a point in the plane; set trunk=point.")
        if len(losses) != 2 or not all(isinstance(loss, Objective) for loss in losses.values()):
            raise ValueError(
                "callbacks=trajectory draws two objectives; choose task=[toy/first,toy/second] or two of "
                "your own from multitask.task.toys."
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the model."""
        self.check(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the starting point."""
        if not self.points:
            self._note(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Record the point after the step."""
        self._note(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files."""
        self._write(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the files of the trajectory so far."""
        if self.points:
            self._write(trainer, pl_module)

    def _note(self, module: LightningModule) -> None:
        assert isinstance(module.trunk, Point)
        self.points.append(module.trunk.point.detach().tolist())

    @torch.no_grad()
    def _write(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        names = list(_losses(module))
        objectives = [deepcopy(loss).cpu() for loss in _losses(module).values()]
        points = torch.tensor(self.points)
        values = torch.stack([objective.values(points) for objective in objectives], dim=-1)
        folder = Path(trainer.default_root_dir)
        with (folder / "trajectory.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*_COLUMNS, *names])
            for step, row in enumerate(torch.cat([points, values], dim=-1).tolist()):
                writer.writerow([step, *row])
        axes = [torch.linspace(a, b, self.resolution) for a, b in zip(self.lower, self.upper, strict=True)]
        grid = torch.cartesian_prod(*axes)
        field = torch.stack([objective.values(grid) for objective in objectives], dim=-1)
        draw(points, values, axes, grid, field, names).savefig(folder / "trajectory.png", dpi=120)
        _save_landscape(folder / "landscape.npz", axes, grid, field)


def _save_landscape(path: Path, axes: Sequence[Tensor], grid: Tensor, field: Tensor) -> None:
    """Save the mean objective on a coarser grid, and the Pareto set."""
    step = -(-len(axes[0]) // 100)
    mean = field.mean(dim=-1).reshape(len(axes[0]), len(axes[1]))[::step, ::step]
    x1, x2 = (axis[::step].numpy() for axis in axes)
    np.savez_compressed(path, x1=x1, x2=x2, mean=mean.numpy(), pareto_set=grid[non_dominated(field)].numpy())


def _losses(module: LightningModule) -> dict[str, Any]:
    assert isinstance(module, MultiTaskModule)
    return {name: task.loss for name, task in module.by_name.items()}


def draw(
    points: Tensor, values: Tensor, axes: Sequence[Tensor], grid: Tensor, field: Tensor, names: Sequence[str]
) -> Figure:
    """Draw a trajectory over two objectives.

    Args:
        points, values: The points, and the objectives at them, each ``[steps, 2]``.
        axes: The coordinates of the grid.
        grid, field: The points of the grid, the first coordinate slowest, and the objectives there, each ``[n, 2]``.
        names: The names of the objectives.
    """
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    mean = field.mean(dim=-1).reshape(len(axes[0]), len(axes[1])).T
    left.contour(axes[0], axes[1], mean, levels=30, cmap="Greys", linewidths=0.6)
    best = non_dominated(field)
    left.plot(*grid[best].T, ".", color="tab:green", markersize=2, label="Pareto set")
    right.plot(*field[best].T, ".", color="tab:green", markersize=2, label="Pareto front")
    for axis, way in ((left, points), (right, values)):
        axis.scatter(*way.T, c=torch.arange(len(way)), cmap="viridis", s=3, zorder=2)
        axis.plot(*way[0], "o", color="black", label="start")
        axis.plot(*way[-1], "*", color="tab:red", markersize=11, label="end", zorder=3)
        axis.legend(loc="best", fontsize="small")
    left.set(xlabel="$x_1$", ylabel="$x_2$", title="mean objective")
    left.set_xlim(float(axes[0][0]), float(axes[0][-1]))
    left.set_ylim(float(axes[1][0]), float(axes[1][-1]))
    right.set(xlabel=names[0], ylabel=names[1], title="objectives")
    return figure
