"""Logs conflict between the tasks' gradients, from the Gramian of the step."""

import math
from functools import partial
from itertools import combinations
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from multitask.gradients.rows import Rows
from multitask.gradients.window import Window
from multitask.lightning.module import MultiLossModule
from multitask.lightning.probing import unobtrusive
from multitask.step import StepResult
from multitask.weighting.base import Scalarization

_TINY = 1e-30


class Conflict(Callback):
    """Logs ``conflict/…`` as means over the logging interval, accumulated on the device.

    - ``cosine/<a>__<b>``: cosine between two tasks' gradients;
    - ``negative_share``: share of the pairs whose cosine is negative;
    - ``magnitude_similarity``: 2‖a‖‖b‖ / (‖a‖² + ‖b‖²), mean over pairs (Gradient Surgery for
      Multi-Task Learning, 2020);
    - ``gramian/condition``: condition number of the Gramian at the interval's last step;
    - ``weights/norm_ratio``: norm of the combined gradient over that of the mean gradient;
    - ``weights/entropy``: entropy of the weights' shares, in units of that of equal weights;
    - ``solver/seconds`` and ``solver/failures`` per step.

    Args:
        most_pairs: The largest number of pairs of tasks for which each cosine is logged.
        probe_every: For scalarizations and ``m_config``, which have no Gramian: compute one every this many steps,
            from the first micro-batch and with one backward pass per task; ``None`` for never.
    """

    def __init__(self, most_pairs: int = 28, probe_every: int | None = None) -> None:
        self.most_pairs = most_pairs
        self.probe_every = probe_every
        self._solver = (0.0, 0)
        self._probed = False

    def check(self, module: LightningModule) -> None:
        """Raise ``ValueError`` if the names of the tasks give two pairs the same key."""
        assert isinstance(module, MultiLossModule)
        pairs: dict[str, tuple[str, str]] = {}
        for pair in combinations(module.names, 2):
            if (other := pairs.setdefault("__".join(pair), pair)) is not pair:
                raise ValueError(
                    f"tasks: conflict/cosine/{'__'.join(pair)} would mean {' and '.join(other)} as well as "
                    f"{' and '.join(pair)}; rename one of them, without two underscores in a row."
                )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register an observer of the module's steps."""
        assert isinstance(pl_module, MultiLossModule)
        self._solver = (pl_module.weighting.solver_seconds, pl_module.weighting.failures)
        pl_module.observers.append(partial(self._after_step, pl_module))

    def _after_step(self, module: MultiLossModule, result: StepResult) -> None:
        if result.gradients is not None and not self._probed:
            self._observe(module, result.gradients.gramian(), result.weights, result.present)
        self._probed = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Compute a Gramian every ``probe_every`` steps if the weighting has none."""
        assert isinstance(pl_module, MultiLossModule)
        due = self.probe_every and trainer.global_step % self.probe_every == 0
        if due and batch_idx % pl_module.window == 0 and pl_module.has_no_gramian:
            self._probed = True
            if (probed := probe(pl_module, batch)) is not None:
                self._observe(pl_module, *probed)

    @torch.no_grad()
    def _observe(
        self, module: MultiLossModule, gramian: Tensor, weights: Tensor | None, present: list[int]
    ) -> None:
        k, add = len(present), module.telemetry.add
        # Rows of parts of the batch are averaged to those of each task's mean gradient.
        parts = len(gramian) // k
        gramian = gramian.detach().view(parts, k, parts, k).mean((0, 2))
        if k > 1:
            self._geometry(module, gramian, present)
        if weights is not None:
            shares = weights.detach().view(parts, k).sum(0)
            mean = torch.full_like(shares, 1.0 / k)
            combined, of_mean = shares @ gramian @ shares, mean @ gramian @ mean
            ratio = combined.clamp(min=0).sqrt() / of_mean.clamp(min=_TINY).sqrt()
            p = shares.abs() / shares.abs().sum().clamp(min=_TINY)
            entropy = -(p * p.clamp(min=_TINY).log()).sum() / math.log(max(k, 2))
            add("conflict/weights", torch.stack([ratio, entropy]), ["norm_ratio", "entropy"])
        solver = (module.weighting.solver_seconds, module.weighting.failures)
        spent = [now - before for now, before in zip(solver, self._solver, strict=True)]
        self._solver = solver
        add("conflict/solver", torch.tensor(spent, dtype=torch.float64), ["seconds", "failures"])

    def _geometry(self, module: MultiLossModule, gramian: Tensor, present: list[int]) -> None:
        k, add = len(present), module.telemetry.add
        squares = gramian.diagonal().clamp(min=0)
        norms = squares.sqrt()
        first, second = torch.triu_indices(k, k, 1, device=gramian.device)
        cosines = gramian[first, second] / (norms[first] * norms[second]).clamp(min=_TINY)
        sums = (squares[first] + squares[second]).clamp(min=_TINY)
        similar = (2 * norms[first] * norms[second] / sums).mean()
        negative = (cosines < 0).to(cosines.dtype).mean()
        add("conflict", torch.stack([negative, similar]), ["negative_share", "magnitude_similarity"])
        pairs = list(combinations(range(len(module.names)), 2))
        if len(pairs) <= self.most_pairs:
            names = ["__".join(pair) for pair in combinations(module.names, 2)]
            index = {pair: i for i, pair in enumerate(pairs)}
            add("conflict/cosine", cosines, names, [index[pair] for pair in combinations(present, 2)])
        every: int = module.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (module.trainer.global_step + 1) % every == 0:
            values = torch.linalg.eigvalsh(gramian.double())
            condition = values[-1] / values[0].clamp(min=_TINY)
            add("conflict/gramian", condition.view(1), ["condition"])


def probe(module: MultiLossModule, batch: Any) -> tuple[Tensor, Tensor | None, list[int]] | None:
    """Compute the Gramian of the losses on a batch of all processes, without side effects.

    Returns:
        The Gramian of the labelled losses, shape ``[k, k]``; the weights that a scalarization gives them, shape
        ``[k]``, or ``None``; and the indices of these losses. ``None`` if no loss is labelled or nothing is shared.
    """
    combiner, step = module.weighting, module.step
    if step.ownership.kept is not None:
        raise ValueError("rows outside of a step are not sharded; leave callbacks.conflict out.")
    window = Window(Rows(), step.ownership)
    with unobtrusive(module, train=True), torch.enable_grad():
        losses, counts = module.named_losses(batch)
        window.add(step.begin(losses), counts, last=True)
    window.close()
    present = window.present
    if not present or not window.shares:
        return None
    gramian = window.gradients(None).gramian()
    if not isinstance(combiner, Scalarization):
        return gramian, None, present
    leaf = window.losses[0, present].requires_grad_()
    with step.as_present(present), torch.enable_grad():
        (weights,) = torch.autograd.grad(combiner(leaf), leaf)
    return gramian, weights, present
