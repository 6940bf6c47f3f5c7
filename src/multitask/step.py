"""One step, from the losses to the ``.grad`` of every parameter that they reach."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multitask.gradients.auto_memory import AutoMemory
from multitask.gradients.engines import make_engine
from multitask.gradients.features import Features
from multitask.gradients.finite import FiniteLosses, not_finite
from multitask.gradients.graph import Graph, Ownership
from multitask.gradients.losses import Counts, Losses, LossesLike, Pulls, counts_of, gradients_at
from multitask.gradients.processes import average_gradients, mean_over_processes
from multitask.gradients.rows import Rows, add_to_gradients, are_finite, is_sharded, on_cpu, processes
from multitask.gradients.sharded import check_hooks, one_sided, shards_of
from multitask.gradients.task_gradients import Engine, TaskGradients
from multitask.gradients.window import Window
from multitask.randomness import derived_seed, seeded_apart
from multitask.weighting.adapter import adapt
from multitask.weighting.base import (
    Combiner,
    JacobianMethod,
    Scalarization,
    WeightedMethod,
    check_sharded,
    check_streamed,
    hooks_of,
)
from multitask.weighting.wrapper import Differentiated


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step."""

    present: list[int]
    """The losses with a labelled element; if empty, no step was taken."""
    losses: Tensor | None = None
    """The mean losses of the present rows over the whole step, detached, ``[parts · k]``."""
    weights: Tensor | None = None
    """The weight of each row, on the CPU if the method computes there; ``None`` if the method has no weights, or if no
    parameter is shared."""
    gradients: TaskGradients | None = None
    """The gradients of all rows, valid until the next step; ``None`` for a scalarization, if no parameter is shared, or
    if some were not computed."""
    overflow: bool = False
    """Whether the scaled gradients overflowed; the loss scaler then skips the optimizer's step."""


class Step:
    """Computes the ``.grad`` of all parameters from several losses, by any weighting.

    A parameter that several losses reach is shared: its gradient is the weighting's combination of the losses'
    gradients. A parameter that only one loss reaches (a head's) gets the gradient of that loss. The graph of each step
    decides, and a parameter that has been shared once remains shared::

        step = Step(UPGrad(), model)
        for batch in loader:
            step.backward(losses(batch))
            optimizer.step()
            optimizer.zero_grad()

    On several processes, whose models start out equal and are not wrapped, the gradients equal those of one
    process with the whole batch.

    Args:
        weighting: A combiner of this package, or a torchjd scalarizer, weighting or aggregator.
        model: The trained module, or tensors by name: order and names of the parameters, which several processes
            and ``state_dict`` need. Parameters may be sharded over all processes by
            ``torch.distributed.fsdp.fully_shard``, before the step is created.
        heads: Whether a parameter that only one loss reaches gets its gradient unchanged (``own``) or multiplied
            by the loss's weight (``weighted``). A scalarization always multiplies.
        engine: How gradients are computed: ``auto``, ``layerwise``, ``rows`` or ``features`` (approximate).
        memory: ``rows`` keeps m gradients or their factors; ``stream`` keeps at most the equivalent of two, takes more
            time, and needs the whole batch in one call on one process; ``auto`` takes ``rows`` if they fit into the
            memory that is free in the first step, else ``stream``.
        shared: The shared parameters, instead of those found from the graph; all others get the sum of the
            gradients of the losses that reach them.
        scaler: The loss scaler of 16-bit training; gradients are left scaled, for ``scaler.step``.
        seed: Seed of the weighting's random numbers.
        sharded: The module that the tensors in ``model`` belong to, if they are sharded.

    Raises:
        TypeError: If the weighting is of another type.
        ValueError: If engine, memory or heads are unknown, or incompatible with the weighting or sharded parameters.
    """

    def __init__(
        self,
        weighting: object,
        model: nn.Module | Mapping[str, Tensor] | None = None,
        *,
        heads: Literal["own", "weighted"] = "own",
        engine: str | Engine = "auto",
        memory: Literal["rows", "stream", "auto"] = "rows",
        shared: Iterable[Tensor] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        seed: int = 0,
        sharded: nn.Module | None = None,
    ) -> None:
        if heads not in ("own", "weighted"):
            raise ValueError(f"heads={heads} is unknown; choose own or weighted.")
        self.weighting: Combiner = adapt(weighting)
        self._shards = shards_of(model, sharded)
        kept = None if self._shards is None else self._shards.kept
        self.ownership = Ownership(model, shared, kept)
        if model is not None:
            self.weighting.check_parameters([name for name, _ in self.ownership.named()])
        self.scaler = scaler
        self.seed = seed
        self.steps = 0
        """The number of steps taken, on which the weighting's random numbers depend."""
        self.now: Callable[[], float] = time.perf_counter
        self.times: dict[str, float] = {}
        """Seconds spent in each section of steps, to be cleared by the reader."""
        scalar = isinstance(self.weighting, Scalarization)
        self._method: JacobianMethod = Differentiated(self.weighting) if scalar else self.weighting  # type: ignore[arg-type, assignment]
        self._uses = hooks_of(self._method)
        self.looks_after = "after_step" in hooks_of(self.weighting)
        """Whether the weighting uses :meth:`after_step`."""
        self._weighted = scalar or heads == "weighted"
        made = make_engine(engine, memory)
        if made.memory != "rows":
            check_streamed(self.weighting, memory=made.memory)
        if self._shards is not None:
            check_sharded(self._method, memory=made.memory)
            if engine == "layerwise" or isinstance(made, Features):
                raise ValueError(
                    f"sharded parameters have rows alone, and weighting.engine={engine} has others; take auto."
                )
        if isinstance(made, Rows):
            made.by_gramian = not (self._method.of_parameters or self._method.reads_jacobian)
        self._auto_memory = made if isinstance(made, AutoMemory) else None
        self._window = Window(made, self.ownership, self._shards)
        self._m = 0
        self._constant: Tensor | None = None
        """The weights of a linear scalarization while its micro-batches accumulate."""
        self._finite: FiniteLosses | None = None
        self._open: StepResult | None = None
        """The first evaluation of a scalarization's step."""
        self._device = torch.device("cpu")

    def backward(self, losses: LossesLike, counts: Counts = None) -> StepResult:
        """Compute the gradients, given the last, or only, micro-batch of a step.

        Args:
            losses: Mean losses over the micro-batch, with their graph: a tensor ``[m]`` or one scalar per loss,
                by name or in order. A weighting of halves or examples needs one row per part, ``[parts, m]``.
            counts: The number of elements of each mean, or one number for all; by default all micro-batches and
                processes count the same. A loss whose count is zero is absent.

        Raises:
            FloatingPointError: If a loss or a gradient is not finite.
            ValueError: If the shapes do not fit the weighting.
        """
        if not isinstance(self.weighting, Scalarization) or self._needs_rows(losses, counts):
            self._add(losses, counts, last=True)
            return self.finish()
        trained = self.ownership.trained() if processes() > 1 else []
        self.discard()
        start, scalar = self.now(), self.scalarize(losses, counts)
        if scalar is None:
            return StepResult([])
        self._backward(scalar)
        average_gradients(p for p in trained if not is_sharded(p))
        self._spent("task gradients", start)
        return self.close()

    def _needs_rows(self, losses: LossesLike, counts: Counts) -> bool:
        """Return whether a scalarization needs one backward pass per loss, instead of one of the scalar."""
        if self._window.begun:
            return True
        if self._shards is None or counts is None:
            return False
        parsed = Losses(losses)
        return one_sided(counts_of(counts, parsed), parsed.values.device)

    def add(self, losses: LossesLike, counts: Counts = None) -> None:
        """Add a micro-batch to the step; arguments as for :meth:`backward`."""
        self._add(losses, counts, last=False)

    def finish(self) -> StepResult:
        """Compute the gradients from the micro-batches added so far, and start the next step.

        Raises:
            ValueError: If no micro-batch was added.
            FloatingPointError: See :meth:`backward`.
        """
        if not self._window.begun:
            raise ValueError("the step has no losses; call add or backward with some first.")
        try:
            self._window.close()
            present = self._window.present
            if not present:
                return StepResult([])
            losses = self._window.losses
            losses = (losses if len(present) == self._m else losses[:, present]).flatten()
            with _as_computed(self._device):
                return (self._finish if self._constant is None else self._finish_linear)(present, losses)
        finally:
            self._clear()

    def scalarize(self, losses: LossesLike, counts: Counts = None) -> Tensor | None:
        """Return a scalarization's scalar with its graph; the caller runs ``backward``.

        On several processes the value is that of the whole batch, and the gradients average to those of the whole
        batch. Until :meth:`close`, further calls evaluate the same step again, as L-BFGS does: with the same random
        numbers, and only the first evaluation is logged and remembered.

        Args:
            losses: As for :meth:`backward`, ``[m]``.
            counts: As for :meth:`backward`.

        Returns:
            A scalar; ``None`` if all losses are absent.
        """
        assert isinstance(self.weighting, Scalarization)
        parsed = Losses(losses)
        self._begin(parsed)
        numbers = counts_of(counts, parsed)
        whole = _cut(losses, [count > 0 for count in numbers])
        if processes() > 1:
            whole, numbers = mean_over_processes(whole, numbers)
            if not whole.requires_grad:
                whole.requires_grad_()  # this process has no labels
        present = [i for i, count in enumerate(numbers) if count > 0]
        if not present:
            return None
        whole = whole if len(present) == self._m else whole[present]
        finite = FiniteLosses(whole, _names(parsed, present), self.steps)
        if whole.device.type == "cpu":
            finite.check()  # does not wait
        with self.as_present(present):
            scalar = self.weighting(whole)
            (weights,) = torch.autograd.grad(scalar, whole, retain_graph=True)
        self._finite = finite
        if self._open is None:
            self._open = StepResult(present, whole.detach(), weights)
        return scalar

    @property
    def is_open(self) -> bool:
        """Whether :meth:`scalarize` began a step that has not ended."""
        return self._open is not None

    def check(self) -> None:
        """End an evaluation of :meth:`scalarize`, after its backward pass and before the optimizer's step.

        Raises:
            FloatingPointError: If a loss is not finite.
        """
        assert self._open is not None
        assert self._finite is not None
        self._finite.check()
        self._rest_absent(self._open.present)

    def close(self) -> StepResult:
        """End the step that :meth:`scalarize` began, after its backward pass.

        Raises:
            FloatingPointError: If a loss is not finite.
        """
        self.check()
        result = self._open
        assert result is not None
        assert result.losses is not None
        self._open = None
        if self._shards is not None:
            self._shards.release()
        with self.as_present(result.present):
            self.weighting.observe(result.losses)
        return self._done(result)

    def discard(self) -> None:
        """Discard the evaluations of a step that has not ended."""
        self._open = None

    def after_step(self, recompute: Callable[[], Tensor], present: Sequence[int]) -> None:
        """Show the same batch to a weighting that uses it after the optimizer's step.

        Args:
            recompute: Returns what the weighting's ``recomputed`` names, by default the batch's mean losses, ``[m]``.
            present: The losses that were present in the step.
        """
        if not self.looks_after or not present:
            return
        with torch.no_grad(), self.as_present(list(present), self.steps - 1):
            everyone = len(present) == self._m
            self.weighting.after_step(recompute if everyone else lambda: recompute()[list(present)])
        if self._shards is not None:
            self._shards.release()

    def rows_of(self, losses: Losses) -> tuple[Tensor, bool]:
        """Return the losses' Jacobian over the shared parameters, ``[m, n]``, and whether n > 0."""
        if self._shards is not None:
            raise ValueError("rows outside of a step are not sharded; leave callbacks.conflict out.")
        graph = Graph(losses.edges())
        self._begin(losses)
        self.ownership.find(graph, losses.m)
        shared = self.ownership.shared
        return Rows().differentiate(Pulls(losses, graph), shared).jacobian(), bool(shared)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the weighting's own parameters, which an optimizer must train."""
        return self.weighting.parameters()

    def state_dict(self) -> dict[str, Any]:
        """Return the weighting's state, the ownership of parameters, the number of steps and the choice of memory."""
        return {
            "weighting": self.weighting.state_dict(),
            "ownership": self.ownership.state_dict(),
            "steps": self.steps,
            **({} if self._auto_memory is None else {"memory": self._auto_memory.choice}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`."""
        if "weighting" in state:
            self.weighting.load_state_dict(state["weighting"])
        self.ownership.load_state_dict(state["ownership"])
        self.steps = state["steps"]
        if self._auto_memory is not None:
            self._auto_memory.choice = dict(state.get("memory", {}))

    @contextmanager
    def as_present(self, present: list[int], number: int | None = None) -> Iterator[None]:
        """Restrict the weighting to the present losses, and seed its random numbers by seed and step."""
        with ExitStack() as entered:
            if self.weighting.draws:
                chosen = derived_seed("combiner", self.seed, self.steps if number is None else number)
                entered.enter_context(seeded_apart(chosen, self._device))
            if len(present) < self._m:
                mask = torch.zeros(self._m, dtype=torch.bool)
                mask[present] = True
                entered.enter_context(self.weighting.restricted_to(mask))
            yield

    def _begin(self, losses: Losses) -> None:
        self._m = losses.m
        if losses.values.device != self._device:
            self._device = losses.values.device
            self.weighting.to(self._device)

    def _scale(self) -> Tensor | None:
        if self.scaler is not None and self._shards is not None:
            raise ValueError(
                "a loss scaler does not see an overflow in another process's shards; set trainer.precision=bf16-mixed."
            )
        return None if self.scaler is None else self.scaler.scale(torch.ones((), device=self._device))

    def _add(self, losses: LossesLike, counts: Counts, last: bool) -> None:
        parsed = Losses(losses)
        if self._shards is not None and isinstance(losses, Tensor):
            check_hooks(losses)
        self._begin(parsed)
        parsed.scale = self._scale()
        rows = self._method.rows
        parsed.of_examples = rows == "example"
        if (rows == "task" and parsed.parts > 1) or (rows == "half" and parsed.parts != 2):
            wanted = "[m], one per loss" if rows == "task" else "[2, m], those of two halves of the batch"
            raise ValueError(
                f"{type(self.weighting).__name__} wants losses {wanted}; they are {list(parsed.values.shape)}."
            )
        linear = isinstance(self.weighting, Scalarization) and self.weighting.linear
        one_count = counts is None or isinstance(counts, int | float)
        if linear and one_count and not self._window.begun:
            probe = torch.ones_like(parsed.values[0]).requires_grad_()
            with self.as_present(list(range(self._m))):
                self._constant = torch.autograd.grad(self.weighting(probe), probe)[0]
        if "wants" in self._uses and not self._window.begun:
            self._window.wanted = self._wanted(parsed, counts, last)
        start = self.now()
        try:
            with _as_computed(self._device):
                if self._constant is None:
                    self._window.add(parsed, counts, last)
                elif one_count:
                    self._window.add_weighted(parsed, counts, last, self._constant)  # type: ignore[arg-type]
                else:
                    raise ValueError(
                        "counts must be one number for all losses, or one per loss, throughout a step."
                    )
        except BaseException:
            self._clear()  # or the next step would count this one's micro-batches
            raise
        self._spent("task gradients", start)

    def _clear(self) -> None:
        """Discard the micro-batches of a step."""
        self._window.clear()
        self._constant = None
        if self._shards is not None:
            self._shards.release()

    def _wanted(self, losses: Losses, counts: Counts, last: bool) -> list[int] | None:
        """Return the losses whose rows the weighting needs; ``None`` for all, or if counts are still unknown."""
        present = list(range(losses.m))
        if counts is not None and not isinstance(counts, int | float):
            if not last or processes() > 1:
                return None
            present = [i for i, count in enumerate(counts_of(counts, losses)) if count > 0]
        if not present:
            return None
        with self.as_present(present):
            wants = self._method.wants()
        return None if wants is None else [present[i] for i in wants]

    def _finish_linear(self, present: list[int], losses: Tensor) -> StepResult:
        """End a step of a linear scalarization."""
        if not all(are_finite([losses])):
            raise not_finite(losses, _names(self._window.last, present), self.steps)
        self._window.write_own({0: 1.0})
        with self.as_present(present):
            scalar = self.weighting(losses)
            if scalar.requires_grad:
                self._backward(scalar)
            self.weighting.observe(losses)
        return self._done(StepResult(present, losses, self._constant))

    def _finish(self, present: list[int], losses: Tensor) -> StepResult:
        window, scale, shared, method = self._window, self._scale(), self._window.shares, self._method
        gradients = window.gradients(scale)
        sums = [gradient.sum() for gradient in window.own.all()] if scale is not None else []
        # The step waits for the device here only: the weighting needs the Gramian now.
        copies = on_cpu([losses, *([gradients.gramian()] if shared else []), *sums])
        of_losses, *of_gradients = are_finite(copies)
        if not of_losses:
            raise not_finite(losses, _names(self._window.last, present), self.steps)
        # The sum of finite numbers can overflow.
        if not self._everywhere(
            all(of_gradients) or (all(of_gradients[:shared]) and all(are_finite(window.own.all())))
        ):
            if scale is None:
                raise FloatingPointError(
                    f"The gradient of a task is not finite at step {self.steps}, and its loss is."
                )
            # Infinite gradients make the loss scaler skip the step and lower its scale.
            if shared:
                gradients.combine(torch.full_like(gradients.gramian()[0], torch.inf))
            own = [p for of_task in self.ownership.own for p in of_task]
            add_to_gradients(own, [torch.full_like(p, torch.inf) for p in own])
            return self._done(StepResult(present, losses, overflow=True))
        if method.on_cpu and shared and copies[0] is not losses:
            gradients.show(copies[1])
        weights, factors = self._combine(copies[0] if method.on_cpu else losses, gradients, present, shared)
        if self._weighted and weights is None and shared:
            raise ValueError(
                f"weighting: {type(self.weighting).__name__} gives no weights; set weighting.heads=own."
            )
        if not self._weighted or weights is None:
            parts = len(losses) // len(present)
            factors = torch.ones(len(present)) if factors is None else factors
            self._write_own((factors / parts).repeat(parts))
        else:
            self._write_own(weights)
        whole = shared and window.wanted is None
        return self._done(StepResult(present, losses, weights, gradients if whole else None))

    def _combine(
        self, losses: Tensor, gradients: TaskGradients, present: list[int], shared: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Let the weighting write the shared gradient; return the weights of the rows and the factors of the heads."""
        method = self._method
        start, uses, weights = self.now(), self._uses, None
        with self.as_present(present):
            factors = method.head_weights(losses) if "head_weights" in uses else None
            # If nothing is shared, a zero Gramian would give arbitrary weights.
            if shared or isinstance(method, Differentiated):
                if "combine" in uses:
                    weights = method.combine(losses, gradients)
                else:
                    assert isinstance(method, WeightedMethod)
                    weights = method.weigh(losses, gradients)
                    gradients.combine(weights)
            if "observe" in uses:
                method.observe(losses)
            own = method.own_loss(losses) if "own_loss" in uses else None
            if own is not None and own.requires_grad:
                self._backward(own)
        self._spent("solver", start)
        return weights, factors

    def _backward(self, scalar: Tensor) -> None:
        scale = self._scale()
        (scalar if scale is None else scalar * scale).backward()

    def _spent(self, section: str, start: float) -> None:
        self.times[section] = self.times.get(section, 0.0) + self.now() - start

    def _write_own(self, weights: Tensor) -> None:
        """Write the own parameters' gradients times the weight of each row, ``[parts · k]``."""
        window = self._window
        by_row: dict[int, float | Tensor] = {0: 1.0}
        if window.last.of_examples:
            matrix = torch.zeros_like(window.losses).flatten()
            matrix[window.rows] = weights.to(matrix)
            leaves = [p for of_task in self.ownership.own for p in of_task]
            window.own.add(0, leaves, gradients_at(*window.last.combination(matrix), leaves))
        else:
            factors = weights.tolist() if weights.device.type == "cpu" else list(weights.unbind())
            by_row = dict(zip(window.rows, factors, strict=True))
        window.write_own(by_row)

    def _everywhere(self, holds: bool) -> bool:
        """Return whether a condition holds on every process."""
        if self.scaler is None or processes() == 1:
            return holds
        flag = torch.tensor(float(holds), device=self._device)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag)

    def _rest_absent(self, present: Sequence[int]) -> None:
        """Keep the optimizer from updating the weighting's parameters of absent losses."""
        for i in range(self._m):
            if i not in present:
                for parameter in self.weighting.parameters_of(i):
                    parameter.grad = None

    def _done(self, result: StepResult) -> StepResult:
        self._rest_absent(result.present)
        self.steps += 1
        return result


def _names(losses: Losses, present: Sequence[int]) -> list[str]:
    return [losses.names[i] if losses.names else str(i) for i in present]


def _cut(losses: LossesLike, present: Sequence[bool]) -> Tensor:
    """Return losses ``[m]`` with no gradient flowing into absent ones, where 0 · inf would be NaN."""
    if not isinstance(losses, Tensor):
        each = list(losses.values()) if isinstance(losses, Mapping) else list(losses)
        return torch.stack(
            [loss if counts else loss.detach() for loss, counts in zip(each, present, strict=True)]
        )
    if not all(present) and losses.grad_fn is not None and losses.grad_fn.name() == "StackBackward0":
        losses.grad_fn.register_hook(
            lambda inputs, outputs: tuple(
                g if counts else None for g, counts in zip(inputs, present, strict=True)
            )
        )
    return losses


def _as_computed(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast, if it is enabled, while gradients are computed."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
