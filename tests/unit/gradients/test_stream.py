"""weighting.memory=stream: the gradients of rows, in the memory of a weighted sum and two gradients."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd import aggregation, scalarization

from multitask.benchmark.methods import Ours, WeightedSum
from multitask.benchmark.problems import make
from multitask.benchmark.timing import peak_mib
from multitask.errors import ConfigError
from multitask.gradients.engines import make_engine
from multitask.gradients.task_gradients import TaskGradients
from multitask.run.combiner import step_options
from multitask.step import Step
from multitask.weighting.adapter import adapt
from multitask.weighting.base import WeightedMethod
from multitask.weighting.gradnorm import GradNorm
from multitask.weighting.wrapper import InstanceWise, Rescaled
from tests.conftest import Arrays, arrays, build, fit
from tests.unit.gradients.reference import EXACT, Known, assert_step, leaves_of
from tests.unit.gradients.zoo import ZOO, losses_of, network
from tests.unit.run.test_engines import config


def test_exact_for_every_network() -> None:
    for name in ZOO:
        net, x = network(name, 3, 7)
        step = Step(Known(), net, memory="stream")
        losses = partial(losses_of, net, x, "task")
        if name == "hook that clips":  # the gradient of a sum is not the sum of the gradients
            with pytest.raises(ValueError, match="otherwise than by a factor"):
                step.backward(losses())
        else:
            assert_step(step, losses, leaves_of(net), **EXACT)


@pytest.mark.parametrize("name", ["mlp", "lstm", "encoder", "reused", "hook that scales"])
def test_halves_of_a_batch(name: str) -> None:
    net, x = network(name, 3, 6)
    step = Step(Known("half"), net, memory="stream")
    assert_step(step, partial(losses_of, net, x, "half"), leaves_of(net), **EXACT)


@pytest.mark.parametrize("options", [{"heads": "weighted"}, {"scaler": torch.amp.GradScaler("cpu", 1024.0)}])
def test_other_options_of_a_step(options: dict[str, Any]) -> None:
    """Absent losses, existing gradients, weighted heads, a loss scaler, and a loss of the parameters alone."""
    found = {}
    for memory in ("rows", "stream"):
        net, x = network("mlp", 4, 7)
        step = Step(Known(), net, memory=memory, **options)
        for _ in range(2):
            losses = losses_of(net, x, "task")
            losses["3"] = 0.1 * net.trunk[0].weight.square().sum()
            step.backward(losses, [2.0, 0.0, 1.0, 1.0])
        found[memory] = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    torch.testing.assert_close(found["stream"], found["rows"], **EXACT)


def test_module_trains_as_with_rows() -> None:
    found = {}
    for memory in ("rows", "stream"):
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4))
        module = build(adapt(aggregation.UPGradWeighting()), trunk=trunk, engine=make_engine("auto", memory))
        fit(module, Arrays(arrays(count=6)), steps=3)
        found[memory] = list(module.parameters())
    torch.testing.assert_close(found["stream"], found["rows"], **EXACT)


class Deep(nn.Module):
    """Twelve layers wider than the batch, and twelve heads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(12))
        self.heads = nn.ModuleList(nn.Linear(64, 1) for _ in range(12))
        self.seen = 0

    def losses(self) -> list[Tensor]:
        x = torch.ones(4, 64)
        for i, layer in enumerate(self.layers):
            x = torch.tanh(layer(x))
            if i == 6:
                x.grad_fn.register_prehook(self._count)
        return [head(x).square().mean() for head in self.heads]

    def _count(self, gradients: tuple[Tensor, ...]) -> None:
        self.seen += 1


def test_number_of_backward_passes_through_a_layer() -> None:
    """A layer is differentiated at most twice per row, and once for the combination."""
    deep = Deep()
    Step(Known(), deep, memory="stream").backward(deep.losses())
    assert deep.seen <= 2 * 12 + 1


def test_the_rows_are_never_stored_together() -> None:
    def step(**options: Any) -> Callable[[], object]:
        deep = Deep()
        stepper = Step(Known(), deep, **options)
        return lambda: stepper.backward(deep.losses())

    deep = Deep()
    of_one = sum(p.numel() for p in deep.layers.parameters()) * 4 / 2**20
    scalar = peak_mib(lambda: torch.stack(deep.losses()).sum().backward())
    assert peak_mib(step(engine="rows")) > 12 * of_one
    assert peak_mib(step(memory="stream")) < scalar + 2 * of_one


def test_transformer_needs_at_most_a_third_more_memory_than_a_weighted_sum() -> None:
    problem = make("transformer", 8)
    upgrad = {"_target_": "torchjd.aggregation.UPGradWeighting"}
    streamed = peak_mib(Ours(problem.copy(), upgrad, memory="stream").step)
    assert streamed <= 1.3 * peak_mib(WeightedSum(problem.copy()).step)


class Reader(WeightedMethod):
    """Reads the Jacobian without declaring it."""

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        return gradients.jacobian().sum(1)


class Twice(Known):
    """Combines the rows twice."""

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        gradients.combine(super().weigh(losses, gradients))
        return torch.ones_like(losses)


@pytest.mark.parametrize(
    ("method", "message"), [(Reader(), "reads the rows"), (Twice(), "combines the rows twice")]
)
def test_reading_rows_that_are_not_kept_is_an_error(method: WeightedMethod, message: str) -> None:
    net, x = network("mlp", 2, 4)
    with pytest.raises(ValueError, match=rf"{message}.*set weighting\.memory=rows"):
        Step(method, net, memory="stream").backward(losses_of(net, x, "task"))


@pytest.mark.parametrize("memory", ["stream", "auto"])
@pytest.mark.parametrize(
    ("weighting", "options", "message"),
    [
        (scalarization.Sum(), {}, "is a scalarization"),
        (GradNorm(["a", "b"]), {}, "reads the rows themselves"),
        (aggregation.TrimmedMean(1), {}, "reads the rows themselves"),
        (Rescaled(adapt(aggregation.GradDrop())), {}, "reads the rows themselves"),  # type: ignore[type-var]
        (InstanceWise(adapt(aggregation.UPGradWeighting())), {}, "has a row per example"),  # type: ignore[arg-type]
        (aggregation.UPGradWeighting(), {"engine": "rows"}, "leave weighting.engine=auto"),
    ],
)
def test_rejected_by_the_step_and_by_the_config(
    weighting: Any, options: dict[str, str], message: str, memory: Any
) -> None:
    message = rf"weighting\.memory={memory} .*{message}"
    with pytest.raises(ValueError, match=message):
        Step(weighting, memory=memory, **options)  # type: ignore[arg-type]
    changes = {"memory": memory, **options}
    with pytest.raises(ConfigError, match=message):
        step_options(
            config("auto", **{f"weighting__{key}": value for key, value in changes.items()}),
            adapt(weighting),
            {},
        )


@pytest.mark.parametrize("memory", ["stream", "auto"])
@pytest.mark.parametrize("key", ["accumulate_grad_batches", "devices"])
def test_steps_of_several_forward_passes_are_rejected(key: str, memory: Any) -> None:
    changes = {"weighting__memory": memory, f"trainer__{key}": 2}
    with pytest.raises(ConfigError, match=rf"memory={memory} needs the whole batch.*set trainer\.{key}=1"):
        step_options(config("auto", **changes), adapt(aggregation.UPGradWeighting()), {})
    net, x = network("mlp", 2, 4)
    with pytest.raises(ValueError, match=f"memory={memory} needs the whole batch"):
        Step(Known(), net, memory=memory).add(losses_of(net, x, "task"))
