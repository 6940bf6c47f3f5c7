"""Every key has the same effect in manual as in automatic optimization.

A Jacobian method with constant weights is a weighted sum, so both must follow the same trajectory.
"""

from functools import partial
from typing import Any

import pytest
import torch
from lightning import Callback
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR
from torchjd.aggregation import ConstantWeighting, SumWeighting
from torchjd.scalarization import Constant

from multitask.data.base import DataModule, Split
from multitask.weighting.adapter import adapt
from tests.conftest import arrays, build, fit

BATCHES, EPOCHS = 4, 5


class Splits(DataModule):
    """24 examples for training, every second of which is also used for validation."""

    def load(self) -> dict[str, Split]:
        data = arrays()
        return {"train": data, "val": {key: values[::2] for key, values in data.items()}}


class Trajectory(Callback):
    """Records the learning rate before, and the parameters after, each batch."""

    def __init__(self) -> None:
        self.parameters: list[torch.Tensor] = []
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.parameters.append(torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone())

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def train(
    manually: bool, weights: list[float], clip: dict[str, Any], scheduler: Any, **options: Any
) -> Trajectory:
    vector = torch.tensor(weights, dtype=torch.float64)
    if not manually:
        module = build(adapt(Constant(vector)))
    else:
        plain = set(weights) == {1.0}
        method = SumWeighting() if plain else ConstantWeighting(vector)
        module = build(adapt(method), weighted_heads=not plain, **clip)
    assert module.automatic_optimization is not manually
    module._optimizer = lambda groups: torch.optim.SGD(groups, lr=0.2, momentum=0.9)
    module._scheduler, module.scheduler_options = scheduler, options
    trajectory = Trajectory()
    fit(module, Splits(6, 24), BATCHES * EPOCHS, callbacks=[trajectory], **({} if manually else clip))
    assert len(trajectory.parameters) == BATCHES * EPOCHS
    return trajectory


def assert_same_trajectory(
    clip: dict[str, Any], scheduler: Any, weights: list[float], **options: Any
) -> Trajectory:
    automatic, manual = (train(manually, weights, clip, scheduler, **options) for manually in (False, True))
    assert automatic.rates == manual.rates
    for one, other in zip(automatic.parameters, manual.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    return manual


CLIPS = {
    "no clipping": {},
    "by norm": {"gradient_clip_val": 0.3, "gradient_clip_algorithm": "norm"},
    "by value": {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"},
}
SCHEDULERS = {
    "step": partial(StepLR, step_size=2, gamma=0.5),
    "cosine": partial(CosineAnnealingLR, T_max=7),
    "plateau": partial(ReduceLROnPlateau, patience=0, threshold=10.0, factor=0.5),
}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.2, 1.5, 0.7]], ids=["sum", "weighted"])
def test_clipping(clip: str, weights: list[float]) -> None:
    trajectory = assert_same_trajectory(CLIPS[clip], None, weights)
    if clip != "no clipping":
        free = train(True, weights, {}, None)
        assert not torch.allclose(trajectory.parameters[-1], free.parameters[-1])


@pytest.mark.parametrize("frequency", [1, 3])
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("scheduler", ["step", "cosine"])
def test_schedulers(scheduler: str, interval: str, frequency: int) -> None:
    trajectory = assert_same_trajectory(
        CLIPS["by norm"], SCHEDULERS[scheduler], [1.0] * 3, interval=interval, frequency=frequency
    )
    # The learning rate of a step after n calls of the scheduler.
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    own = SCHEDULERS[scheduler](optimizer)
    expected = []
    for epoch in range(EPOCHS):
        for batch in range(BATCHES):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            last = batch == BATCHES - 1
            if interval == "step" and (batch + 1) % frequency == 0:
                own.step()
            if interval == "epoch" and last and (epoch + 1) % frequency == 0:
                own.step()
    assert trajectory.rates == expected


@pytest.mark.parametrize("frequency", [1, 3])
def test_plateau(frequency: int) -> None:
    """A threshold that is never reached halves the learning rate at every check."""
    trajectory = assert_same_trajectory(
        {}, SCHEDULERS["plateau"], [1.0] * 3, interval="epoch", frequency=frequency, monitor="val/loss"
    )
    assert trajectory.rates == [
        0.2 * 0.5 ** (epoch // frequency) for epoch in range(EPOCHS) for _ in range(BATCHES)
    ]
