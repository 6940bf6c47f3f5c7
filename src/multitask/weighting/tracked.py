"""Gradients remembered from step to step, one row per task."""

import logging

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


def fitting(rows: Tensor | None, jacobian: Tensor, method: str) -> Tensor:
    """Return the remembered rows, ``[k, n]``, or zeros where there are none for these parameters.

    A parameter that was frozen or unfrozen since changes n: what was remembered is dropped, and that
    is logged.
    """
    if rows is not None and rows.shape == jacobian.shape:
        return rows.to(jacobian)
    if rows is not None:
        _log.warning(
            "%s: the shared parameters are %d numbers now and were %d; its remembered gradients start over.",
            method,
            jacobian.shape[1],
            rows.shape[1],
        )
    return torch.zeros_like(jacobian)
