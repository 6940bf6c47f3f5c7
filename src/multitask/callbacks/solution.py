"""Plots the prediction of a physics-informed network beside the solution."""

from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from matplotlib.figure import Figure
from torch import Tensor

from multitask.data.collocation import grid_of
from multitask.physics.problem import Problem
from multitask.pinn import PINN


class Solution(Callback):
    """Saves ``solution.png`` with the evaluated weights to the run's folder, and logs it to W&B.

    Each field has one row with prediction, solution and absolute error over the first two axes; other axes are fixed
    at their midpoints. ``resolution`` is the number of grid points along each axis; below 2 it raises ``ValueError``.
    """

    def __init__(self, resolution: int = 200) -> None:
        if resolution < 2:
            raise ValueError(f"callbacks.solution.resolution={resolution} must be 2 or more.")
        self.resolution = resolution
        self._loggers: list[Logger] = []

    def check(self, module: LightningModule) -> None:
        """Raise ``ValueError`` unless the model is a :class:`multitask.pinn.PINN` with at least two axes."""
        if not isinstance(module, PINN) or len(module.problem.axes) < 2:
            raise ValueError(
                "callbacks=solution draws a model=pinn with at least two axes; choose callbacks=default."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the loggers, since evaluation runs without them."""
        self._loggers = list(trainer.loggers)

    @torch.no_grad()
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and log the plot."""
        if not trainer.is_global_zero or not isinstance(pl_module, PINN):
            return
        problem = pl_module.problem
        grid = grid_of(problem, [self.resolution] * 2)
        found = pl_module(grid.to(pl_module.device)).double().cpu()
        path = Path(trainer.default_root_dir) / "solution.png"
        draw(problem, found, problem.solution(grid), self.resolution).savefig(path, dpi=120)
        for logger in trainer.loggers or self._loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("solution", [str(path)])


def draw(problem: Problem, found: Tensor, wanted: Tensor, resolution: int) -> Figure:
    """Draw fields on a square grid: ``found`` and ``wanted``, ``[resolution², f]``, the first axis slowest."""
    figure = Figure(figsize=(11, 3 * len(problem.fields)), layout="constrained")
    all_axes = figure.subplots(len(problem.fields), 3, squeeze=False)
    (first, ends), (second, others), *_ = problem.axes.items()
    for i, (field, row) in enumerate(zip(problem.fields, all_axes, strict=True)):
        pictures = [v[:, i].view(resolution, resolution).T for v in (found, wanted, (found - wanted).abs())]
        low, high = float(pictures[1].min()), float(pictures[1].max())
        for axis, picture, title in zip(row, pictures, ("prediction", "solution", "error"), strict=True):
            scale = {"cmap": "magma"} if title == "error" else {"cmap": "RdBu_r", "vmin": low, "vmax": high}
            drawn = axis.imshow(
                picture.numpy(), origin="lower", aspect="auto", extent=(*ends, *others), **scale
            )
            axis.set(title=f"{field}: {title}", xlabel=first, ylabel=second)
            figure.colorbar(drawn, ax=axis)
    return figure
