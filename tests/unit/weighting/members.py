"""Helpers of the weighting tests: every member built from its YAML, and a toy problem without a Trainer."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from multitask.gradients.rows import RowGradients
from multitask.gradients.task_gradients import TaskGradients
from multitask.run.resolvers import register
from multitask.run.weighting import build_weighting
from multitask.weighting.base import Combiner, JacobianMethod, Scalarization

CONFIGS = Path(__file__).parents[3] / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "weighting").glob("*.yaml"))
STOCHASTIC = {"rlw", "random", "pcgrad", "gradvac", "graddrop"}
NEEDS_THREE = {"krum", "trimmed_mean"}
FEW = ("weighted_sum", "imtl_l", "upgrad", "modo")
"""One member of each kind: without and with trainable parameters, rows of a batch and of its halves."""
PARAMETERS = (("0.weight", 6), ("0.bias", 2), ("2.weight", 4))
N = sum(size for _, size in PARAMETERS)


@cache
def _composed() -> DictConfig:
    """Return each member's YAML as Hydra composes it, under its name."""
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(overrides=["+tasks={}", *(f"+weighting@{name}={name}" for name in NAMES)])


@cache
def _resolved(name: str, tasks: tuple[str, ...]) -> dict[str, Any]:
    config = {"tasks": dict.fromkeys(tasks, 0), "weighting": _composed()[name]}
    return OmegaConf.to_container(OmegaConf.create(config).weighting, resolve=True)  # type: ignore[return-value]


def config(name: str, tasks: Sequence[str]) -> dict[str, Any]:
    """Return a member's YAML as Hydra composes it, for these tasks."""
    return deepcopy(_resolved(name, tuple(tasks)))


def number_of_tasks(name: str) -> int:
    """Return the smallest number of tasks, at least three, that a member accepts."""
    return 5 if name in NEEDS_THREE else 3


def names(m: int) -> list[str]:
    return [f"t{i}" for i in range(m)]


def make(name: str, tasks: int | Sequence[str], **changes: Any) -> Combiner:
    """Return a member in float64, with changes to its YAML."""
    tasks = names(tasks) if isinstance(tasks, int) else tasks
    return build_weighting({**config(name, tasks), **changes}, tasks).double()


def gradients(
    jacobian: Tensor, layout: Sequence[tuple[str, int]] | None = None
) -> tuple[TaskGradients, nn.Parameter]:
    """Return a Jacobian as a combiner sees it, and the parameter whose ``.grad`` it writes."""
    parameter = nn.Parameter(torch.zeros(jacobian.shape[1], dtype=jacobian.dtype))
    rows = RowGradients(jacobian, [parameter])
    rows.layout = layout or (PARAMETERS if jacobian.shape[1] == N else [("0.weight", jacobian.shape[1])])
    rows.distances = range(len(rows.layout), 0, -1)  # registered in the order in which they run
    return rows, parameter


@dataclass
class Update:
    """The result of one step of a combiner."""

    vector: Tensor
    """The combined gradient, shape ``[n]``."""
    heads: Tensor
    """The factor of each head's own gradient, shape ``[k]``."""
    weights: Tensor | None
    """The weights of the rows."""


def update(
    combiner: Combiner, losses: Tensor, jacobian: Tensor, layout: Sequence[tuple[str, int]] | None = None
) -> Update:
    """Call a combiner as the training loop does, up to the optimizer's step."""
    losses = losses.detach()
    if isinstance(combiner, Scalarization):
        leaf = losses.clone().requires_grad_()
        total = combiner(leaf)
        total.backward()
        combiner.observe(losses)
        assert leaf.grad is not None
        return Update(leaf.grad @ jacobian, leaf.grad, leaf.grad)
    assert isinstance(combiner, JacobianMethod)
    rows, parameter = gradients(jacobian, layout)
    heads = combiner.head_weights(losses)
    weights = combiner.combine(losses, rows)
    combiner.observe(losses)
    own = combiner.own_loss(losses)
    if own is not None:
        own.backward()
    assert parameter.grad is not None
    return Update(parameter.grad, torch.ones_like(losses) if heads is None else heads, weights)


@dataclass
class Toy:
    """``m`` conflicting quadratic losses of ``N`` parameters, each on ``batch`` examples."""

    m: int
    batch: int = 4
    seed: int = 0
    keep: list[int] | None = None
    A: Tensor = field(init=False)
    b: Tensor = field(init=False)

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(self.seed)
        # Examples of one task are similar, tasks are not.
        base = torch.randn(1, self.m, 3, N, generator=random, dtype=torch.float64)
        self.A = base + 0.2 * torch.randn(self.batch, self.m, 3, N, generator=random, dtype=torch.float64)
        self.b = 2 * torch.randn(1, self.m, 3, generator=random, dtype=torch.float64)
        if self.keep is not None:
            self.A, self.b = self.A[:, self.keep], self.b[:, self.keep]
            self.m = len(self.keep)

    def rows(self, x: Tensor, rows: str, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses ``[k]`` and the Jacobian ``[k, n]`` of the present tasks' rows."""
        A, b = self.A[:, present], self.b[:, present]
        residuals = torch.einsum("btkn,n->btk", A, x) - b
        losses = 0.5 + 0.5 * residuals.pow(2).mean(-1)
        jacobian = torch.einsum("btkn,btk->btn", A, residuals) / A.shape[2]
        match rows:
            case "half":
                halves = [
                    torch.stack([v[0::2].mean(0), v[1::2].mean(0)]).flatten(0, 1) for v in (losses, jacobian)
                ]
                return halves[0], halves[1]
            case "example":
                return losses.flatten(), jacobian.flatten(0, 1)
        return losses.mean(0), jacobian.mean(0)


@dataclass
class ToyTraining:
    """Training steps on a toy problem, which can be stopped and resumed."""

    combiner: Combiner
    toy: Toy
    lr: float = 0.02
    x: Tensor = field(default_factory=lambda: torch.zeros(N, dtype=torch.float64))
    step: int = 0

    def run(self, steps: int, absent: Sequence[int] = (), epoch: int = 3) -> "ToyTraining":
        """Take steps, with epochs of ``epoch`` steps and without labels of the ``absent`` tasks."""
        present = torch.ones(self.toy.m, dtype=torch.bool)
        present[list(absent)] = False
        rows = self.combiner.rows if isinstance(self.combiner, JacobianMethod) else "task"
        for _ in range(steps):
            torch.manual_seed(self.step)
            with self.combiner.restricted_to(present):
                done = update(self.combiner, *self.toy.rows(self.x, rows, present))
                own = list(self.combiner.parameters())
                unlabelled = [p for i in absent for p in self.combiner.parameters_of(i)]
                with torch.no_grad():
                    self.x = self.x - self.lr * done.vector
                    for p in own:
                        if p.grad is not None and all(p is not q for q in unlabelled):
                            p -= 0.1 * p.grad
                        p.grad = None
                self.combiner.after_step(lambda: self.toy.rows(self.x, rows, present)[0])
            self.step += 1
            if self.step % epoch == 0:
                self.combiner.on_epoch_end()
        return self


def conflicting(m: int, n: int = N, seed: int = 1) -> Tensor:
    """Return a float64 Jacobian of ``m`` rows in general position, some of which conflict."""
    J = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return J * torch.linspace(0.5, 2.0, m, dtype=torch.float64)[:, None]


def losses_of(m: int) -> Tensor:
    return torch.linspace(0.5, 2.0, m, dtype=torch.float64)


def update_rows(losses: Tensor, jacobian: Tensor, combiner: Combiner) -> Update:
    """Call :func:`update`; a combiner of half batches gets the same rows for both halves."""
    if isinstance(combiner, JacobianMethod) and combiner.rows == "half":
        return update(combiner, losses.repeat(2), jacobian.repeat(2, 1))
    return update(combiner, losses, jacobian)
