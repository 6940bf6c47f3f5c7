"""Gradients stored between steps, one row per task."""

import logging

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


def fitting(rows: Tensor | None, jacobian: Tensor, method: str) -> Tensor:
    """Return the stored rows, ``[k, n]``, or zeros if there are none for these n parameters.

    Freezing or unfreezing a parameter changes n; the stored rows are then discarded with a warning.
    """
    if rows is not None and rows.shape == jacobian.shape:
        return rows.to(jacobian)
    if rows is not None:
        _log.warning(
            "%s: the shared parameters have %d elements instead of %d; the stored gradients are reset.",
            method,
            jacobian.shape[1],
            rows.shape[1],
        )
    return torch.zeros_like(jacobian)
