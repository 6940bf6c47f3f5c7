"""Optimizers that call their closure several times take one step of the weighting, as in plain PyTorch."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
import torchjd
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.optim import Optimizer

from multitask import Step
from multitask.randomness import derived_seed
from multitask.weighting.base import Combiner, Scalarization
from multitask.weighting.torchjds import TorchjdScalarization
from tests.conftest import Arrays, arrays, build, fit, regression
from tests.unit.weighting.members import make

STEPS, BATCH, TASKS = 5, 8, 3
WEIGHTINGS = ["weighted_sum", "scheduled_sum", "rlw", "dwa", "DWA of torchjd", "famo", "gls", "cosmos"]


class Sharp(torch.optim.SGD):
    """SAM: uses the gradient at a perturbed point."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        assert closure is not None
        with torch.enable_grad():
            loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        perturbations = [0.3 * p.grad for p in parameters]
        with torch.no_grad():
            for p, e in zip(parameters, perturbations, strict=True):
                p.add_(e)
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            for p, e in zip(parameters, perturbations, strict=True):
                p.sub_(e)
        super().step()
        return loss


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "L-BFGS": lambda groups: torch.optim.LBFGS(groups, lr=0.1, max_iter=4),
    "SAM": lambda groups: Sharp(groups, lr=0.05),
}


def combiner(name: str) -> Scalarization:
    if name == "DWA of torchjd":
        return TorchjdScalarization(torchjd.scalarization.DWA())
    changes = (
        {"schedule": {"t0": [[0, 1], [3, 0.1]], "t1": [[2, 0.5], [3, 2.0]]}}
        if name == "scheduled_sum"
        else {}
    )
    made = make(name, TASKS, **changes)
    assert isinstance(made, Scalarization)
    return made


def losses(module: Any, batch: dict[str, Tensor]) -> Tensor:
    features = module.trunk(batch["inputs"])
    return torch.stack(
        [mse_loss(module.by_name[f"t{i}"].head(features), batch[f"t{i}"]) for i in range(TASKS)]
    )


def batches() -> list[dict[str, Tensor]]:
    whole = arrays(tasks=TASKS)
    per_epoch = len(whole["inputs"]) // BATCH
    return [{k: v[i % per_epoch * BATCH :][:BATCH] for k, v in whole.items()} for i in range(STEPS)]


def in_plain_torch(module: Any, weighting: Combiner, optimizer: Optimizer) -> None:
    """Train with one random draw per step, and observe the losses before and after it."""
    per_epoch = len(arrays()["inputs"]) // BATCH
    for i, batch in enumerate(batches()):

        def closure(batch: dict[str, Tensor] = batch, i: int = i) -> Tensor:
            optimizer.zero_grad()
            torch.manual_seed(derived_seed("combiner", 0, i))
            scalar: Tensor = weighting(losses(module, batch))
            scalar.backward()
            return scalar

        before = losses(module, batch).detach()
        optimizer.step(closure)
        weighting.observe(before)
        with torch.no_grad():
            weighting.after_step(lambda batch=batch: losses(module, batch))  # type: ignore[misc]
        if (i + 1) % per_epoch == 0:
            weighting.on_epoch_end()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_step_is_one_step_of_the_weighting(name: str, optimizer: str) -> None:
    module = build(combiner(name), optimizer=OPTIMIZERS[optimizer])
    # torchjd's DWA observes the losses at each call, so the reference is ours, which otherwise agrees.
    reference, weighting = deepcopy(module), combiner(name.removesuffix(" of torchjd").lower())
    trained = [p for n, p in reference.named_parameters() if not n.startswith("weighting.")]
    in_plain_torch(reference, weighting, OPTIMIZERS[optimizer](trained))
    fit(module, Arrays(arrays(), batch_size=BATCH), steps=STEPS)
    assert module.step.steps == STEPS
    for (key, ours), theirs in zip(module.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=key)
    kept = module.weighting.state_dict()
    for key, value in weighting.state_dict().items():
        if isinstance(value, Tensor) and key in kept:
            torch.testing.assert_close(kept[key], value, rtol=1e-9, atol=1e-12, equal_nan=True, msg=key)


@pytest.mark.parametrize("name", ["scheduled_sum", "rlw", "dwa"])
def test_a_step_of_a_plain_loop_ends_when_closed(name: str) -> None:
    module = build(combiner(name))
    reference, weighting = deepcopy(module), combiner(name)
    make_optimizer = OPTIMIZERS["L-BFGS"]
    in_plain_torch(reference, weighting, make_optimizer(list(reference.parameters())))
    trained = {n: p for n, p in module.named_parameters() if not n.startswith("weighting.")}
    step, optimizer = Step(module.weighting, trained), make_optimizer(list(trained.values()))
    for i, batch in enumerate(batches()):

        def closure(batch: dict[str, Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            scalar = step.scalarize(losses(module, batch))
            assert scalar is not None
            scalar.backward()
            return scalar

        optimizer.step(closure)
        step.close()
        if (i + 1) % 3 == 0:
            step.weighting.on_epoch_end()
    assert step.steps == STEPS
    for ours, theirs in zip(trained.values(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_logged_losses_are_those_before_the_step() -> None:
    module = build(combiner("weighted_sum"), optimizer=OPTIMIZERS["L-BFGS"])
    expected = losses(module, batches()[0]).detach()
    seen: list[Tensor] = []
    module.observers.append(lambda result: seen.append(result.losses))  # type: ignore[arg-type]
    fit(module, Arrays(arrays(), batch_size=BATCH), steps=1)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], expected, rtol=1e-12, atol=0)


def test_a_batch_without_labels_changes_nothing() -> None:
    heads = {f"t{i}": regression(f"t{i}", missing=True) for i in range(TASKS)}
    data = arrays()
    for i in range(TASKS):
        data[f"t{i}"][:BATCH] = torch.nan
    module = build(combiner("weighted_sum"), heads=heads, optimizer=OPTIMIZERS["L-BFGS"])
    before = [p.detach().clone() for p in module.parameters()]
    fit(module, Arrays(data, batch_size=BATCH), steps=1)
    assert all(map(torch.equal, before, module.parameters()))
    assert module.step.steps == 0
    fit(module, Arrays(data, batch_size=BATCH), steps=2)
    assert not any(map(torch.equal, before, module.parameters()))
