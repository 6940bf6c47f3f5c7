"""AUROC that is NaN where it is undefined."""

import torch
from torch import Tensor
from torchmetrics import classification
from torchmetrics.utilities import dim_zero_cat


class BinaryAUROC(classification.BinaryAUROC):
    """``torchmetrics.classification.BinaryAUROC``, but NaN instead of 0 if all targets are of one class."""

    def compute(self) -> Tensor:  # type: ignore[override]  # as in torchmetrics
        """Return the area under the curve, a scalar in [0, 1]."""
        if self.thresholds is None:
            target = dim_zero_cat(self.target)
            positive = target == 1
            both = bool(positive.any() and (target == 0).any())
        else:
            both = bool(self.confmat[0].sum(-1).all())  # rows are the true classes
        return super().compute() if both else torch.tensor(torch.nan, device=self.device)
