"""Refuses terms that are not the mean that the config declares, by computing a batch whole and in parts."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from multitask.data.batches import examples_in, picked
from multitask.errors import ConfigError, on_one_line
from multitask.module import MultiTaskModule
from multitask.run.loss_checks import close
from multitask.task.task import Batch
from multitask.task.terms import Term

Found = tuple[Tensor, float | Tensor | None]


def check_term(
    name: str,
    term: Term,
    module: MultiTaskModule,
    batch: Batch,
    drawn: Callable[[Callable[[], Found]], Found] = lambda make: make(),
) -> None:
    """Check that a term can be computed, and that a batch gives the weighted mean of its two parts.

    Args:
        name: The task's name.
        term: The term.
        module: Trunk and tasks, in evaluation mode.
        batch: A few examples.
        drawn: Calls a function in which lazy layers of the loss draw their initial values.

    Raises:
        ConfigError: If either fails: accumulation, several processes and batched evaluation would each change the
            loss.
    """
    try:
        seen = module.see(batch)
        loss, count = drawn(lambda: term(seen))
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ConfigError(f"tasks.{name}: {on_one_line(said).rstrip('.')}.") from error
    examples = seen.examples
    if term.derivatives:
        _check_reach(name, loss, module)
    whole = float(loss.detach())
    parted = examples > 1 and examples == examples_in(batch)
    if (
        term.counts_by == "batch"
        or not parted
        or not math.isfinite(whole)
        or (count is not None and not count)
    ):
        return
    cut = max(1, 3 * examples // 8)
    sums = counts = 0.0
    for rows in (torch.arange(cut), torch.arange(cut, examples)):
        part = picked(batch, rows)
        try:
            found, its = module.term(name, module.see(part))
        except ValueError as error:
            raise ConfigError(
                f"tasks.{name}.loss fails on a part of a batch ({on_one_line(error)}); set "
                f"tasks.{name}.count=batch if it is no mean over examples."
            ) from error
        size = float(len(rows) if its is None else its)
        if size:
            sums, counts = sums + size * float(found.detach()), counts + size
    if not counts or not close(whole, sums / counts):
        joined = sums / counts if counts else math.nan
        raise ConfigError(
            f"tasks.{name}.loss is not the mean over {'its examples' if count is None else 'its count'} that it is "
            f"taken for: a batch gives {whole:.6g} and its two parts together {joined:.6g}; set tasks.{name}.count="
            "batch (one number for each batch, averaged over micro-batches, processes and evaluation batches), or "
            "return (mean, number of elements)."
        )


def _check_reach(name: str, loss: Tensor, module: MultiTaskModule) -> None:
    """Refuse a loss on derivatives that do not depend on the weights, as in piecewise linear networks."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        return
    found = torch.autograd.grad(loss, trained, allow_unused=True) if loss.requires_grad else [None]
    if not any(gradient is not None and gradient.any() for gradient in found):
        raise ConfigError(
            f"tasks.{name}.loss does not depend on a single trained weight: second derivatives of a network of ReLUs "
            "are zero; use a smooth activation such as Tanh, for example trunk=mlp_smooth."
        )
