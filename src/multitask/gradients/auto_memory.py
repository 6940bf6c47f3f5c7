"""``memory="auto"``: rows if they fit into free memory, else the streamed Gramian."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multitask.gradients.layerwise import Layerwise
from multitask.gradients.losses import Pulls
from multitask.gradients.rows import numbers, row_like
from multitask.gradients.stream import Streamed
from multitask.gradients.task_gradients import Engine, MicroBatch, TaskGradients
from multitask.system import available_memory

_log = logging.getLogger(__name__)


class AutoMemory(Engine):
    """:class:`Layerwise` if rows fit into free memory, else :class:`Streamed`; exact either way.

    Chosen once, in the first step in which parameters are shared, when its graph is in memory and no row is.
    """

    memory = "auto"

    def __init__(self) -> None:
        self.choice: dict[str, Any] = {}
        """``taken`` (rows or stream), ``bytes_needed`` by rows and ``bytes_free``; empty before the choice."""
        self._streamed, self._layerwise = Streamed(), Layerwise()
        self._layerwise.by_gramian = True

    @property
    def _chosen(self) -> Engine:
        return self._layerwise if self.choice.get("taken") == "rows" else self._streamed

    def clear(self) -> None:
        self._chosen.clear()

    def add(self, batch: MicroBatch) -> None:
        pulls, parameters, *_ = batch
        if parameters and not self.choice:
            needed, device = bytes_for_rows(pulls, parameters), parameters[0].device
            free = free_memory(device)
            taken, level = ("rows", logging.INFO) if needed <= free else ("stream", logging.WARNING)
            self.choice = {"taken": taken, "bytes_needed": needed, "bytes_free": free}
            mib = f"rows need {needed / 2**20:,.1f} MiB, and {free / 2**20:,.1f} MiB are free on {device}"
            _log.log(level, "weighting.memory=auto takes %s: %s.", taken, mib)
        self._chosen.add(batch)

    def gradients(self, rows: Sequence[int], factors: Sequence[float]) -> TaskGradients:
        return self._chosen.gradients(rows, factors)


def bytes_for_rows(pulls: Pulls, parameters: Sequence[Tensor]) -> int:
    """Return how many bytes steps with rows take besides the graph, whose memory is already allocated.

    Rows count in full, even if layer-wise factors would be smaller.
    """
    k, n = pulls.losses.values.numel(), numbers(parameters)
    own = {id(p): p for of_task in pulls.parameters for p in of_task}
    # Gradients, and the two moments that an optimizer such as Adam allocates after the first step.
    kept = 3 * (n + numbers(own.values()))
    products = k * k * n // 1024  # of blocks of columns, whose sum is the Gramian
    # A pass holds up to three gradients of outputs at a time: incoming, outgoing and that of a residual connection.
    outputs = (node._input_metadata for node in pulls.graph.following)
    passing = 3 * max(sum(math.prod(o.shape) * o.dtype.itemsize for o in of_node) for of_node in outputs)
    # A tenth more, since an allocator cannot use all free memory.
    return int(1.1 * ((k * n + kept + products) * row_like(parameters).itemsize + passing))


def free_memory(device: torch.device) -> int:
    """Return how many more bytes can be allocated on a device.

    Raises:
        ValueError: If neither torch nor the system reports it.
    """
    module: Any = getattr(torch, device.type, None)
    free = available_memory() if device.type == "cpu" else None
    if device.type == "mps":
        free = module.recommended_max_memory() - module.current_allocated_memory()
    elif hasattr(module, "mem_get_info"):
        of_device, total = module.mem_get_info(device)
        # Memory that torch's allocator caches is free too, up to the process's fraction of the device.
        fraction = getattr(module, "get_per_process_memory_fraction", lambda _: 1.0)(device)
        most = min(of_device + module.memory_reserved(device), int(fraction * total))
        free = most - module.memory_allocated(device)
    if free is None:
        raise ValueError(
            f"weighting.memory=auto cannot tell how much memory is free on {device}; set it to rows or stream."
        )
    return free
