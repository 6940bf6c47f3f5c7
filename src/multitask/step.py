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
from multitask.gradients.finite import finite_check, not_finite
from multitask.gradients.graph import Ownership
from multitask.gradients.losses import Counts, Losses, LossesLike, counts_of
from multitask.gradients.processes import average_gradients, mean_over_processes
from multitask.gradients.rows import add_to_gradients, are_finite, is_sharded, on_cpu, processes
from multitask.gradients.sharded import check_hooks, one_sided, shards_of
from multitask.gradients.task_gradients import Engine, TaskGradients
from multitask.gradients.window import Window
from multitask.randomness import derived_seed, seeded_apart
from multitask.weighting.adapter import adapt
from multitask.weighting.base import JacobianMethod, Scalarization, WeightedMethod, check_kept, hooks_of
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
        self.weighting = adapt(weighting)
        self._shards = shards_of(model, sharded)
        kept = None if self._shards is None else self._shards.kept
        self.ownership = Ownership(model, shared, kept)
        if model is not None:
            self.weighting.check_parameters(list(self.ownership.named()))
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
        self._engine = make_engine(engine, memory, self._shards is not None)
        check_kept(self.weighting, self._engine.memory, self._shards is not None)
        self._engine.by_gramian = not (self._method.of_parameters or self._method.reads_jacobian)
        self._window = Window(self._engine, self.ownership, self._shards)
        self._tasks: list[str] = []
        """The losses' names or numbers."""
        self._constant: Tensor | None = None
        """The weights of a linear scalarization while its micro-batches accumulate."""
        self.evaluated: StepResult | None = None
        """The first evaluation by :meth:`scalarize` in a step that has not ended; ``None`` discards it."""
        self._check: Callable[[], None]
        """Raises an error if a loss of the last evaluation is not finite."""
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
        rows = not isinstance(self.weighting, Scalarization) or self._window.begun
        if self._shards is not None and counts is not None and not rows:
            # All processes take part in the passes through shards: one pass per loss if only some have its labels.
            parsed = Losses(losses)
            rows = one_sided(counts_of(counts, parsed), parsed.values.device)
        if rows:
            self._add(losses, counts, last=True)
            return self.finish()
        trained = self.ownership.trained() if processes() > 1 else []
        self.evaluated = None
        start, scalar = self.now(), self.scalarize(losses, counts)
        if scalar is None:
            return StepResult([])
        scalar.backward(self._scale())
        average_gradients(p for p in trained if not is_sharded(p))
        self._spent("task gradients", start)
        return self.close()

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
            present, losses = self._window.present, self._window.losses
            if not present:
                return StepResult([])
            losses = (losses if len(present) == len(self._tasks) else losses[:, present]).flatten()
            with _as_computed(self._device):
                result = (self._finish if self._constant is None else self._finish_linear)(present, losses)
            self._rest_absent(present)
            self.steps += 1
            return result
        finally:
            self._clear()

    def scalarize(self, losses: LossesLike, counts: Counts = None) -> Tensor | None:
        """Return a scalarization's scalar, ``None`` if all losses are absent; the caller runs ``backward``.

        On several processes the value is that of the whole batch, and the gradients average to those of the whole
        batch. Until :meth:`close`, further calls evaluate the same step again, as L-BFGS does: with the same random
        numbers, and only the first evaluation is logged and remembered.

        Args:
            losses, counts: As for :meth:`backward`.
        """
        assert isinstance(self.weighting, Scalarization)
        parsed = self.begin(losses)
        numbers = counts_of(counts, parsed)
        whole = _cut(losses, [count > 0 for count in numbers])
        if processes() > 1:
            whole, numbers = mean_over_processes(whole, numbers)
        present = [i for i, count in enumerate(numbers) if count > 0]
        if not present:
            return None
        whole = whole if len(present) == len(self._tasks) else whole[present]
        self._check = finite_check(whole, [self._tasks[i] for i in present], self.steps)
        if whole.device.type == "cpu":
            self._check()  # does not wait
        with self.as_present(present):
            scalar = self.weighting(whole)
            (weights,) = torch.autograd.grad(scalar, whole, retain_graph=True)
        if self.evaluated is None:
            self.evaluated = StepResult(present, whole.detach(), weights)
        return scalar

    def check(self) -> StepResult:
        """End an evaluation of :meth:`scalarize`, after its backward pass and before the optimizer's step.

        Returns:
            The result of the step's first evaluation.

        Raises:
            FloatingPointError: If a loss is not finite.
        """
        assert self.evaluated is not None
        self._check()
        self._rest_absent(self.evaluated.present)
        return self.evaluated

    def close(self) -> StepResult:
        """End the step that :meth:`scalarize` began, after its backward pass; see :meth:`check` for errors."""
        result = self.check()
        assert result.losses is not None
        self.evaluated = None
        if self._shards is not None:
            self._shards.release()
        with self.as_present(result.present):
            self.weighting.observe(result.losses)
        self.steps += 1
        return result

    def after_step(self, recompute: Callable[[], Tensor], present: Sequence[int]) -> None:
        """Show the same batch to a weighting that uses it after the optimizer's step.

        Args:
            recompute: Returns what the weighting's ``recomputed`` names, by default the batch's mean losses, ``[m]``.
            present: The losses that were present in the step.
        """
        if not self.looks_after or not present:
            return
        with torch.no_grad(), self.as_present(list(present), self.steps - 1):
            everyone = len(present) == len(self._tasks)
            self.weighting.after_step(recompute if everyone else lambda: recompute()[list(present)])
        if self._shards is not None:
            self._shards.release()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the weighting's own parameters, which an optimizer must train."""
        return self.weighting.parameters()

    def state_dict(self) -> dict[str, Any]:
        """Return the weighting's state, the ownership of parameters, the number of steps and the choice of memory."""
        return {
            "weighting": self.weighting.state_dict(),
            "ownership": self.ownership.state_dict(),
            "steps": self.steps,
            **({"memory": self._engine.choice} if isinstance(self._engine, AutoMemory) else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`."""
        if "weighting" in state:
            self.weighting.load_state_dict(state["weighting"])
        self.ownership.load_state_dict(state["ownership"])
        self.steps = state["steps"]
        if isinstance(self._engine, AutoMemory):
            self._engine.choice = dict(state.get("memory", {}))

    @contextmanager
    def as_present(self, present: list[int], number: int | None = None) -> Iterator[None]:
        """Restrict the weighting to the present losses, and seed its random numbers by seed and step."""
        with ExitStack() as entered:
            if self.weighting.draws:
                chosen = derived_seed("combiner", self.seed, self.steps if number is None else number)
                entered.enter_context(seeded_apart(chosen, self._device))
            if len(present) < len(self._tasks):
                mask = torch.tensor([i in present for i in range(len(self._tasks))])
                entered.enter_context(self.weighting.restricted_to(mask))
            yield

    def begin(self, losses: LossesLike) -> Losses:
        """Adapt the step and its weighting to the number and the device of losses."""
        parsed = Losses(losses)
        self._tasks = parsed.names
        if parsed.values.device != self._device:
            self._device = parsed.values.device
            self.weighting.to(self._device)
        return parsed

    def _scale(self) -> Tensor | None:
        if self.scaler is not None and self._shards is not None:
            raise ValueError(
                "a loss scaler does not see an overflow in another process's shards; set trainer.precision=bf16-mixed."
            )
        return None if self.scaler is None else self.scaler.scale(torch.ones((), device=self._device))

    def _add(self, losses: LossesLike, counts: Counts, last: bool) -> None:
        start = self.now()
        try:
            parsed, window, rows = self.begin(losses), self._window, self._method.rows
            if self._shards is not None and isinstance(losses, Tensor):
                check_hooks(losses)
            parsed.scale = self._scale()
            parsed.of_examples = rows == "example"
            if (rows == "task" and parsed.parts > 1) or (rows == "half" and parsed.parts != 2):
                wanted = "[m], one per loss" if rows == "task" else "[2, m], those of two halves of the batch"
                raise ValueError(
                    f"{type(self.weighting).__name__} wants losses {wanted}; they are {list(parsed.values.shape)}."
                )
            one_count, present = not hasattr(counts, "__len__"), list(range(parsed.m))
            weighting, first = self.weighting, not window.begun
            if first and one_count and isinstance(weighting, Scalarization) and weighting.linear:
                probe = torch.ones_like(parsed.values[0]).requires_grad_()
                with self.as_present(present):
                    self._constant = torch.autograd.grad(weighting(probe), probe)[0]
            # With a count per loss, only the end of a step shows which losses are present.
            if first and "wants" in self._uses and (one_count or (last and processes() == 1)):
                if not one_count:
                    present = [i for i, count in enumerate(counts_of(counts, parsed)) if count > 0]
                if present:
                    with self.as_present(present):
                        wants = self._method.wants()
                    window.wanted = None if wants is None else [present[i] for i in wants]
            with _as_computed(self._device):
                if self._constant is not None and not one_count:
                    raise ValueError(
                        "counts must be one number for all losses, or one per loss, throughout a step."
                    )
                window.add(parsed, counts, last, self._constant)
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

    def _finish_linear(self, present: list[int], losses: Tensor) -> StepResult:
        """End a step of a linear scalarization."""
        if not all(are_finite([losses])):
            raise not_finite(losses, [self._tasks[i] for i in present], self.steps)
        self._window.write_own(torch.ones(len(present)))  # row 0 has all gradients
        with self.as_present(present):
            scalar = self.weighting(losses)
            if scalar.requires_grad:
                scalar.backward(self._scale())
            self.weighting.observe(losses)
        return StepResult(present, losses, self._constant)

    def _finish(self, present: list[int], losses: Tensor) -> StepResult:
        window, scale, shared, method = self._window, self._scale(), self._window.shares, self._method
        gradients = window.gradients(scale)
        sums = [gradient.sum() for gradient in window.own.all()] if scale is not None else []
        # The step waits for the device here only: the weighting needs the Gramian now.
        copies = on_cpu([losses, *([gradients.gramian()] if shared else []), *sums])
        of_losses, *of_gradients = are_finite(copies)
        if not of_losses:
            raise not_finite(losses, [self._tasks[i] for i in present], self.steps)
        # The sum of finite numbers can overflow.
        finite = all(of_gradients) or (all(of_gradients[:shared]) and all(are_finite(window.own.all())))
        if scale is not None and processes() > 1:
            everywhere = torch.tensor(float(finite), device=self._device)
            dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
            finite = bool(everywhere)
        if not finite:
            if scale is None:
                raise FloatingPointError(
                    f"The gradient of a task is not finite at step {self.steps}, and its loss is."
                )
            # Infinite gradients make the loss scaler skip the step and lower its scale.
            reached = [p for p in self.ownership.reaching if p.requires_grad]
            add_to_gradients(reached, [torch.full_like(p, torch.inf) for p in reached])
            return StepResult(present, losses, overflow=True)
        if method.on_cpu and shared and copies[0] is not losses:
            gradients.show(copies[1])
        weights = self._combine(copies[0] if method.on_cpu else losses, gradients, present)
        return StepResult(present, losses, weights, gradients if shared and window.wanted is None else None)

    def _combine(self, losses: Tensor, gradients: TaskGradients, present: list[int]) -> Tensor | None:
        """Write the gradients of shared and own parameters; return the weights of the rows."""
        window, method, uses = self._window, self._method, self._uses
        start, weights = self.now(), None
        with self.as_present(present):
            factors = method.head_weights(losses) if "head_weights" in uses else None
            # If nothing is shared, a zero Gramian would give arbitrary weights.
            if window.shares or isinstance(method, Differentiated):
                if isinstance(method, WeightedMethod) and "combine" not in uses:
                    weights = method.weigh(losses, gradients)
                    gradients.combine(weights)
                else:
                    weights = method.combine(losses, gradients)
            if "observe" in uses:
                method.observe(losses)
            own = method.own_loss(losses) if "own_loss" in uses else None
            if own is not None and own.requires_grad:
                own.backward(self._scale())
        self._spent("solver", start)
        of_rows = weights if self._weighted else None
        if of_rows is None:
            if self._weighted and window.shares:
                raise ValueError(
                    f"weighting: {type(self.weighting).__name__} gives no weights; set weighting.heads=own."
                )
            parts = len(losses) // len(present)
            factors = torch.ones(len(present), dtype=torch.float64) if factors is None else factors
            of_rows = (factors / parts).repeat(parts)
        window.write_own(of_rows)
        return weights

    def _spent(self, section: str, start: float) -> None:
        self.times[section] = self.times.get(section, 0.0) + self.now() - start

    def _rest_absent(self, present: Sequence[int]) -> None:
        """Keep the optimizer from updating the weighting's parameters of absent losses."""
        for i in set(range(len(self._tasks))).difference(present):
            for parameter in self.weighting.parameters_of(i):
                parameter.grad = None


def _cut(losses: LossesLike, present: Sequence[bool]) -> Tensor:
    """Return losses ``[m]`` with no gradient flowing into absent ones, where 0 · inf would be NaN."""
    if not isinstance(losses, Tensor):
        each = losses.values() if isinstance(losses, Mapping) else losses
        return torch.stack(
            [loss if kept else loss.detach() for loss, kept in zip(each, present, strict=True)]
        )
    if not all(present) and losses.grad_fn is not None and losses.grad_fn.name() == "StackBackward0":
        losses.grad_fn.register_hook(
            lambda inputs, _: tuple(g if kept else None for g, kept in zip(inputs, present, strict=True))
        )
    return losses


def _as_computed(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast, if it is enabled, while gradients are computed."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
