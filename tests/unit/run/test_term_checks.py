"""Invalid terms are rejected before training, in one sentence that names the key."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from multitask.errors import ConfigError
from multitask.module import MultiTaskModule
from multitask.run.loss_checks import check_term
from multitask.task.seen import Seen
from multitask.task.terms import Auxiliary, Term
from tests.conftest import arrays, regression
from tests.unit.task.test_kinds import FLAT, built
from tests.unit.task.test_kinds import arrays as kinds_arrays


def distances(seen: Seen) -> Tensor:
    """Return the mean distance of pairs, which is not a mean over examples."""
    return torch.pdist(seen.predictions["t0"]).mean()


def masked(seen: Seen) -> tuple[Tensor, Tensor]:
    known = seen.inputs[:, 0] > 0  # type: ignore[index]
    return seen.predictions["t0"][known].square().mean(), known.sum()


def second_derivative(seen: Seen) -> Tensor:
    first = seen.derivative(seen.predictions["t0"][:, 0])
    return (seen.derivative(first[:, 0]) - 1).square().sum(1)


def checked(term: Term, activation: type[nn.Module] = nn.Tanh) -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(5, 4), activation())
    module = MultiTaskModule(trunk, {"t0": regression("t0"), "x": term}).double()
    with torch.set_grad_enabled(term.derivatives):
        check_term("x", term, module, arrays())


@pytest.mark.parametrize(
    "term",
    [
        Term(lambda seen: seen.predictions["t0"].square().mean(1)),
        Term(lambda seen: seen.predictions["t0"].square().mean()),
        Term(masked),
        Term(distances, count="batch"),
        Term(second_derivative, derivatives=True),
        Term(lambda seen: (seen.features.sum() * torch.nan, 0), missing=True),
    ],
)
def test_means_pass(term: Term) -> None:
    checked(term)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Term(distances), r"tasks\.x\.loss is not the mean over its examples.*set tasks\.x\.count=batch"),
        (Term(lambda seen: masked(seen)[0]), "is not the mean over its examples"),
        (Term(lambda seen: (distances(seen), 24.0)), "is not the mean over its count"),
        (Term(lambda seen: seen.predictions["t0"]), r"tasks\.x: the loss gives \[24, 2\], but must give"),
        (Term(lambda seen: 1.0), "the loss gives a float"),
        (Term(lambda seen: seen.predictions["t1"].mean()), "no task 't1' makes predictions; available: t0"),
        (Term(lambda seen: seen.batch["label"].mean()), r"tasks\.x: label"),
        (Term(Auxiliary("kl")), r"loss\.name: the trunk returns no loss 'kl'; it returns none"),
        (Term(second_derivative), "the inputs require no gradient; set derivatives=true"),
        (
            Term(lambda seen: seen.derivative(seen.predictions["t0"]).sum(1), derivatives=True),
            r"one number for each of 24 examples, not \[24, 2\]",
        ),
    ],
)
def test_terms_that_are_not_means_are_rejected(term: Term, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        checked(term)
    assert str(caught.value).endswith(".")


def test_second_derivatives_of_a_piecewise_linear_network_are_rejected() -> None:
    with pytest.raises(ConfigError, match="does not depend on a single trained weight"):
        checked(Term(second_derivative, derivatives=True), nn.ReLU)


SECOND = ["task=[kinds/scalar,kinds/second_loss]", "tasks.rings_l1.prediction.task=scalar"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*SECOND, "tasks.rings_l1.target=vector", "+tasks.rings_l1.missing=true"],
            r"tasks\.rings_l1: .*make the head's output as wide",
        ),
        (
            ["task=[kinds/forces]", "tasks.forces.target=inputs"],
            r"tasks\.forces: no task 'energy' makes predictions; available: forces\.",
        ),
        (
            [
                "task=[kinds/scalar,kinds/forces]",
                "tasks.forces.prediction.task=scalar",
                "tasks.forces.target=inputs",
                "compile=true",
            ],
            r"compile=true leaves no second derivative of the trunk, which tasks\.forces needs",
        ),
        (
            [
                "task=[kinds/scalar,kinds/forces]",
                "tasks.forces.prediction.task=scalar",
                "tasks.forces.target=inputs",
                "+tasks.forces.transform._target_=multitask.task.targets.Standardized",
            ],
            r"tasks\.forces\.transform changes the target's units.*leave transform out",
        ),
    ],
)
def test_incompatible_predictions_are_rejected(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        built(tmp_path, kinds_arrays(), *overrides, *FLAT)
