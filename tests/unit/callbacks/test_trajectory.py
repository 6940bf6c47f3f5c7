"""The recorded trajectory of a toy problem, which ends on its Pareto set."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from multitask.callbacks.trajectory import Trajectory, _losses
from multitask.data.toy import Toy
from multitask.module import MultiTaskModule
from multitask.nn.point import Point
from multitask.run.weighting import build_weighting
from multitask.task.task import Task
from multitask.task.toys import Quadratic, Valleys
from multitask.weighting.base import Combiner
from tests.conftest import build, fit

MEAN = "torchjd.scalarization.Mean"
UPGRAD = "torchjd.aggregation.UPGradWeighting"


def combiner(target: str) -> Combiner:
    return build_weighting({"_target_": target}, ["first", "second"])


def problem(weighting: Combiner, start: tuple[float, float], **losses: nn.Module) -> MultiTaskModule:
    tasks = {name: Task(nn.Identity(), loss, target="origin") for name, loss in losses.items()}
    return build(weighting, trunk=Point(start), heads=tasks, dtype=torch.float32)


def quadratics(weighting: Combiner) -> MultiTaskModule:
    centers = {"first": Quadratic([-2, 1]), "second": Quadratic([2, 1], scale=10)}
    return problem(weighting, (-1.0, 4.0), **centers)


@pytest.mark.parametrize(("target", "expected"), [(MEAN, 2 * 9 / 11), (UPGRAD, None)])
def test_table_plot_and_end_on_the_pareto_set(tmp_path: Path, target: str, expected: float | None):
    module = quadratics(combiner(target))
    fit(
        module,
        Toy(steps=200),
        steps=200,
        callbacks=[Trajectory([-3, -1], [3, 5], 50)],
        default_root_dir=tmp_path,
    )
    with (tmp_path / "trajectory.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert [row["step"] for row in rows] == list(range(201))
    assert (rows[0]["x1"], rows[0]["x2"]) == (-1, 4)
    assert rows[0]["first"] == pytest.approx(0.5 * (1 + 9))
    with np.load(tmp_path / "landscape.npz") as below:
        assert below["mean"].shape == (len(below["x1"]), len(below["x2"])) == (50, 50)
        mean = [
            objective.values(torch.tensor([[below["x1"][7], below["x2"][9]]]))
            for objective in _losses(module).values()
        ]
        assert below["mean"][7, 9] == pytest.approx(float(sum(mean)) / 2)
        assert abs(below["pareto_set"][:, 1] - 1).max() < 0.2
    last = module.trunk.point.tolist()
    assert (rows[-1]["x1"], rows[-1]["x2"]) == pytest.approx(last, abs=1e-6)
    assert last[1] == pytest.approx(1, abs=1e-3)
    assert -2 - 1e-6 <= last[0] <= 2 + 1e-6
    # The mean of the losses improves the second objective at the expense of the first; UPGrad does not.
    assert (rows[-1]["first"] < rows[0]["first"]) is (target == UPGRAD)
    assert rows[-1]["second"] < rows[0]["second"]
    if expected is not None:
        assert last[0] == pytest.approx(expected, abs=1e-3)
    with Image.open(tmp_path / "trajectory.png") as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(maxcolors=1_000_000)) > 50


def test_trajectory_is_plotted_after_an_error(tmp_path: Path):
    module = quadratics(combiner(MEAN))

    def stop(*_: object) -> None:
        raise RuntimeError("stop")

    callback = Trajectory([-3, -1], [3, 5], 20)
    module.on_train_epoch_end = stop
    with pytest.raises(RuntimeError, match="stop"):
        fit(module, Toy(steps=5), steps=10, callbacks=[callback], default_root_dir=tmp_path)
    assert len((tmp_path / "trajectory.csv").read_text().splitlines()) == 1 + 6
    assert (tmp_path / "trajectory.png").is_file()


def test_state_is_restored():
    first, second = Trajectory(), Trajectory()
    first.points = [[1.0, 2.0], [3.0, 4.0]]
    second.load_state_dict(first.state_dict())
    assert second.points == first.points


def test_other_problems_are_rejected(tmp_path: Path):
    mean = combiner(MEAN)
    module = problem(mean, (0.0, 0.0), first=Valleys(1), second=nn.MSELoss())
    with pytest.raises(ValueError, match="two objectives"):
        fit(module, Toy(steps=1), callbacks=[Trajectory()], default_root_dir=tmp_path)
    module = build(mean, tasks=2)
    with pytest.raises(ValueError, match="trunk=point"):
        fit(module, Toy(steps=1), callbacks=[Trajectory()], default_root_dir=tmp_path)
    with pytest.raises(ValueError, match=r"callbacks\.trajectory\.lower"):
        Trajectory(lower=[0, 0], upper=[1, 0])


def test_noise_is_deterministic_by_seed():
    draws = []
    for seed in (0, 0, 1):
        module = Toy(steps=50, noise=0.3, seed=seed)
        module.setup("fit")
        draws.append(module.splits["train"]["inputs"])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert float(draws[0].std()) == pytest.approx(0.3, rel=0.2)
    with pytest.raises(ValueError, match=r"data\.steps"):
        Toy(steps=0)
