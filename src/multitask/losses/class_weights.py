"""Losses with class weights computed from the training split."""

import torch
from torch import Tensor, nn


class BalancedCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy with balanced class weights: all classes have the same total weight in the training split.

    The weight of a class is n / (classes · n_class), as in Logistic Regression in Rare Events Data (2001); classes
    that do not occur in training have the average weight, 1. See :class:`torch.nn.CrossEntropyLoss` for the arguments.
    """

    weight: Tensor

    def __init__(self, num_classes: int, ignore_index: int = -100, label_smoothing: float = 0.0) -> None:
        super().__init__(torch.ones(num_classes), ignore_index=ignore_index, label_smoothing=label_smoothing)
        self._counts = torch.zeros(num_classes, dtype=torch.int64)

    def observe(self, targets: Tensor) -> None:
        """Count a batch of training classes; raise ``ValueError`` if one is not in [0, classes)."""
        labelled = targets[targets != self.ignore_index]
        if labelled.numel() and not 0 <= int(labelled.min()) <= int(labelled.max()) < len(self._counts):
            raise ValueError(
                f"loss.num_classes={len(self._counts)} does not include the class "
                f"{int(labelled.min()) if labelled.min() < 0 else int(labelled.max())}"
            )
        self._counts += torch.bincount(labelled.flatten(), minlength=len(self._counts)).cpu()

    def finish(self) -> None:
        """Set the class weights; raise ``ValueError`` if no class was observed."""
        counts, occurs = self._counts.double(), self._counts > 0
        if not occurs.any():
            raise ValueError("the training split has no labelled class to compute class weights from")
        weight = torch.where(occurs, counts.sum() / (occurs.sum() * counts.clamp(min=1)), 1.0)
        self.weight = weight.to(self.weight)
        self._counts = torch.zeros_like(self._counts)


class BalancedBinaryCrossEntropy(nn.BCEWithLogitsLoss):
    """Binary cross-entropy of logits with balanced positives: per column, ones and zeros have the same total weight.

    The weight of a one is n_zeros / n_ones in the training split, or 1 if a column lacks either.
    """

    pos_weight: Tensor

    def __init__(self) -> None:
        super().__init__(pos_weight=torch.ones(1))
        self._ones: Tensor | float = 0.0
        self._all: Tensor | float = 0.0

    def observe(self, targets: Tensor) -> None:
        """Count a batch of training targets 0 and 1, shape ``[batch]`` or ``[batch, columns]``, NaN where missing."""
        columns = targets[:, None] if targets.ndim == 1 else targets
        self._ones = self._ones + columns.nansum(0).double()
        self._all = self._all + (~columns.isnan()).sum(0).double()

    def finish(self) -> None:
        """Set the weights."""
        ones = torch.as_tensor(self._ones)
        zeros = self._all - ones
        self.pos_weight = torch.where((ones > 0) & (zeros > 0), zeros / ones, 1.0).to(self.pos_weight)
        self._ones = self._all = 0.0
