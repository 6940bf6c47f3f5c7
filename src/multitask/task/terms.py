"""Losses of anything that the model computes: tasks without a head."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from multitask.task.seen import Seen

LossOfSeen = Tensor | tuple[Tensor, float | Tensor]
"""A scalar mean over the batch's examples; one value per example, ``[batch]``; or a mean and its count."""


class Term(nn.Module):
    """A loss of anything that the model computes, which the weighting combines with the other losses.

    Args:
        loss: ``loss(seen)`` returns the mean over the batch's examples, a scalar; the loss of each example,
            ``[batch]``; or a mean and its count. See :class:`multitask.task.seen.Seen` for what it can use.
        weight: A constant factor of the loss, applied before the weighting.
        count: ``batch`` for a loss that is not a mean over examples (contrastive pairs, the balance of experts);
            several batches are then averaged by their counts. Other values raise ``ValueError``.
        missing: Whether the loss can be absent from a batch; its count is then 0 and its value arbitrary.
        derivatives: Whether the loss calls :meth:`multitask.task.seen.Seen.derivative`.
    """

    def __init__(
        self,
        loss: Callable[[Seen], LossOfSeen],
        weight: float = 1.0,
        count: Literal["batch"] | None = None,
        missing: bool = False,
        derivatives: bool | None = None,
    ) -> None:
        super().__init__()
        if count not in (None, "batch"):
            raise ValueError(f"tasks.*.count of a term is null or batch, not {count!r}.")
        self.loss = loss
        self.weight = weight
        self.counts_by = count
        self.missing = missing
        self.derivatives = bool(getattr(loss, "derivatives", False)) if derivatives is None else derivatives

    def forward(self, seen: Seen) -> tuple[Tensor, float | Tensor | None]:
        """Return the mean loss, a scalar, and its count; ``None`` for the number of examples.

        Raises ``ValueError`` if the loss returns something else than :data:`LossOfSeen`.
        """
        values, count = self._evaluated(seen)
        if values.ndim:
            values = values.mean()
        if self.missing and count is not None and not count:
            values = torch.zeros_like(values)  # a mean over nothing is NaN
        return self.weight * values, count

    def each(self, seen: Seen) -> Tensor:
        """Return the loss of each example, ``[batch]``; raise ``ValueError`` if it is one number per batch."""
        values, _ = self._evaluated(seen)
        if not values.ndim:
            raise ValueError(
                "the loss is one number per batch, but the weighting has one row per example; let it return one "
                "value per example, or choose another weighting"
            )
        return self.weight * values

    def _evaluated(self, seen: Seen) -> tuple[Tensor, float | Tensor | None]:
        given: Any = self.loss(seen)
        values, count = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
        shape = list(values.shape) if isinstance(values, Tensor) else f"a {type(values).__name__}"
        if shape != [] and (count is not None or shape != [seen.examples]):
            raise ValueError(
                f"the loss gives {shape}, but must give one number, one value per example, or a number and its count"
            )
        return seen.in_precision(values), count


class Auxiliary(nn.Module):
    """One of the trunk's own losses.

    Args:
        name: A key of ``losses`` in the trunk's output, a :class:`multitask.nn.with_losses.WithLosses`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, seen: Seen) -> LossOfSeen:
        """Return the trunk's loss; raise ``ValueError`` if the trunk returns no such loss."""
        if self.name not in seen.losses:
            raise ValueError(
                f"loss.name: the trunk returns no loss '{self.name}'; it returns "
                f"{', '.join(seen.losses) or 'none, which would be in multitask.nn.with_losses.WithLosses'}"
            )
        return seen.losses[self.name]


class SupervisedContrastive(nn.Module):
    """ "Supervised Contrastive Learning" (Khosla et al., 2020), Equation 2, on the trunk's features.

    It compares pairs and is not a mean over examples, so its term needs ``count: batch``.

    Args:
        target: The key of the batch's classes, ``[batch]``.
        temperature: Temperature of the cosines; positive.
        task: The task whose features to use, if the trunk returns features per task.
    """

    def __init__(self, target: str, temperature: float = 0.1, task: str | None = None) -> None:
        super().__init__()
        self.target = target
        self.temperature = _positive(temperature)
        self.task = task

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Return the mean over examples with another example of their class in the batch, and the number of these."""
        features = seen.features
        if not isinstance(features, Tensor):
            if self.task is None:
                raise ValueError("loss.task is not set, but the trunk has features per task")
            features = features[self.task]
        unit = F.normalize(features.flatten(1), dim=1)
        others = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        logits = (unit @ unit.T / self.temperature).masked_fill(~others, -torch.inf)
        log_shares = logits.log_softmax(1).masked_fill(~others, 0.0)
        classes = seen.batch[self.target]
        alike = (classes[:, None] == classes) & others
        pairs = alike.sum(1)
        paired = pairs > 0
        each = -(log_shares * alike).sum(1) / pairs.clamp(min=1)
        return each.sum() / paired.sum().clamp(min=1), paired.sum()


class Distillation(nn.Module):
    """T² · KL(teacher ‖ student) between the softmax of two predictions at temperature T.

    "Distilling the Knowledge in a Neural Network" (Hinton et al., 2015).

    Args:
        student, teacher: The task that learns, and the task that it learns from, with scores ``[batch, classes]``.
        temperature: T; positive.
        mutual: Whether to add KL(student ‖ teacher) and train both, for consistency between two heads.
    """

    def __init__(self, student: str, teacher: str, temperature: float = 1.0, mutual: bool = False) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.temperature = _positive(temperature)
        self.mutual = mutual

    def forward(self, seen: Seen) -> Tensor:
        """Return the divergence of each example, ``[batch]``."""
        student = (seen.predictions[self.student] / self.temperature).log_softmax(1)
        teacher = (seen.predictions[self.teacher] / self.temperature).log_softmax(1)
        if not self.mutual:
            return self.temperature**2 * _divergence(teacher.detach(), student)
        return self.temperature**2 * (_divergence(teacher, student) + _divergence(student, teacher))


def _positive(temperature: float) -> float:
    if temperature <= 0:
        raise ValueError(f"tasks.*.loss.temperature={temperature} must be above 0.")
    return temperature


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p ‖ q) of log-probabilities ``[batch, classes]``."""
    return (p.exp() * (p - q)).sum(1)


class Poisson(nn.Module):
    """The squared residual of u″ + π² sin(πx) = 0, whose solution with u(±1) = 0 is sin(πx).

    Args:
        task: The task whose prediction is u(x), ``[batch, 1]``, for inputs x, ``[batch, 1]``.
    """

    derivatives: ClassVar[bool] = True

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task = task

    def forward(self, seen: Seen) -> Tensor:
        """Return the squared residual at each point, ``[batch]``."""
        x = seen.inputs
        assert isinstance(x, Tensor)
        second = seen.derivative(seen.derivative(seen.predictions[self.task]))
        return (second + math.pi**2 * torch.sin(math.pi * x)).square().flatten()
