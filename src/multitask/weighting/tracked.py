import logging

import torch
from torch import Tensor

from multitask.weighting.base import JacobianMethod

_log = logging.getLogger(__name__)


class Tracking(JacobianMethod):
    """A method that stores a gradient per task between steps, in the memory of m copies of the trunk.

    Its buffer is kept last, since it is initialized later and callbacks that average weights pair buffers by order.
    """

    of_parameters = True
    remembers_rows = True

    def fitting(self, rows: Tensor | None, jacobian: Tensor) -> Tensor:
        """Return the stored rows, ``[k, n]``, or zeros if there are none for these n parameters.

        Freezing or unfreezing a parameter changes n; the stored rows are then discarded with a warning.
        """
        if rows is not None and rows.shape == jacobian.shape:
            return rows.to(jacobian)
        if rows is not None:
            _log.warning(
                "%s: the shared parameters have %d elements instead of %d; the stored gradients are reset.",
                type(self).__name__,
                jacobian.shape[1],
                rows.shape[1],
            )
        return torch.zeros_like(jacobian)
