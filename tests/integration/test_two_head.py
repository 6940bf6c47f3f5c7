"""The smallest multi-task problem agrees with a computation by hand."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.integration.script_runner import Scripts


def relu_net(state: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    before = x @ state["trunk.0.weight"].T + state["trunk.0.bias"]
    return before, np.maximum(before, 0)


def by_hand(state: dict, x: np.ndarray, targets: dict[str, np.ndarray], alpha: float, rate: float) -> dict:
    """Take one step of gradient descent on alpha·L_a + (1 − alpha)·L_b, in float64."""
    before, features = relu_net(state, x)
    new, to_features = dict(state), np.zeros_like(features)
    for name, weight in (("a", alpha), ("b", 1 - alpha)):
        w, b = f"tasks.{name}.head.weight", f"tasks.{name}.head.bias"
        residual = features @ state[w].T + state[b] - targets[name][:, None]
        signal = weight * 2 * residual / residual.size
        new[w], new[b] = state[w] - rate * signal.T @ features, state[b] - rate * signal.sum(0)
        to_features += signal @ state[w]
    to_before = to_features * (before > 0)
    new["trunk.0.weight"] = state["trunk.0.weight"] - rate * to_before.T @ x
    new["trunk.0.bias"] = state["trunk.0.bias"] - rate * to_before.sum(0)
    return new


@pytest.mark.smoke
@pytest.mark.slow
def test_one_step_matches_a_computation_by_hand(scripts: Scripts, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4))
    targets = {"a": rng.normal(size=50), "b": rng.normal(size=50)}
    np.savez(tmp_path / "file.npz", inputs=x, **targets)
    shapes = {
        "trunk.0.weight": (8, 4), "trunk.0.bias": (8,),
        "tasks.a.head.weight": (1, 8), "tasks.a.head.bias": (1,),
        "tasks.b.head.weight": (1, 8), "tasks.b.head.bias": (1,),
    }  # fmt: skip
    state = {name: rng.normal(size=shape) * 0.5 for name, shape in shapes.items()}
    torch.save(
        {name: torch.tensor(value, dtype=torch.float32) for name, value in state.items()},
        tmp_path / "start.pt",
    )
    overrides = {
        "experiment": "two_head",
        "data.path": tmp_path / "file.npz",
        "alpha": 0.3,
        "trainer.max_steps": 1,
        "init_from": tmp_path / "start.pt",
        "logger": "csv",
        "hydra.run.dir": tmp_path / "run",
    }
    ran = scripts.run(*(f"{key}={value}" for key, value in overrides.items()))
    assert ran.code == 0, ran.err
    after = by_hand(state, x, targets, alpha=0.3, rate=0.05)
    found = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, value in after.items():
        np.testing.assert_allclose(found[name].numpy(), value, atol=1e-6, err_msg=name)
    with (tmp_path / "run/results.csv").open() as file:
        rows = {(r["split"], r["task"], r["metric"]): float(r["value"]) for r in csv.DictReader(file)}
    _, features = relu_net(after, x)
    losses = {
        name: ((features @ after[f"tasks.{name}.head.weight"].T)[:, 0] + after[f"tasks.{name}.head.bias"] - y)
        ** 2
        for name, y in targets.items()
    }
    a, b = losses["a"].mean(), losses["b"].mean()
    expected = {"a": a, "b": b, "combined": 0.3 * a + 0.7 * b}
    assert rows.keys() == {("train", task, "loss") for task in expected}
    for task, value in expected.items():
        assert rows["train", task, "loss"] == pytest.approx(value, abs=1e-6)
