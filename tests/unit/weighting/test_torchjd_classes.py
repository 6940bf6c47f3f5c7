"""Any class of torchjd can be used from a user's YAML, with its state saved."""

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torchjd import aggregation, scalarization
from torchjd.aggregation import Aggregator, Weighting
from torchjd.linalg import Matrix
from torchjd.scalarization import Scalarizer

from multitask.run.weighting import build_weighting
from multitask.weighting.adapter import adapt
from multitask.weighting.base import Combiner
from multitask.weighting.torchjds import AggregatorMethod, GramianMethod, MatrixMethod
from tests.unit.weighting.members import Toy, ToyTraining, conflicting, losses_of, make, names, update

M = 4
BASES = {
    Aggregator,
    Weighting,
    Scalarizer,
    aggregation.GramianWeightedAggregator,
    aggregation.WeightedAggregator,
}
CLASSES = {
    f"torchjd.{module}.{name}"
    for module, members in (("aggregation", vars(aggregation)), ("scalarization", vars(scalarization)))
    for name, found in members.items()
    if isinstance(found, type) and issubclass(found, tuple(BASES)) and found not in BASES
}
NEEDS_A_SOLVER = {f"torchjd.aggregation.{name}" for name in ("NashMTL", "CAGrad", "CAGradWeighting")}
TWO_BATCHES = {f"torchjd.aggregation.{name}" for name in ("MoDoWeighting", "SDMGradWeighting")}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "CRMOGMWeighting": {"weighting": {"_target_": "torchjd.aggregation.UPGradWeighting"}},
    "Constant": {"weights": {"t0": 2}},
    "ConstantWeighting": {"weights": {"t0": 2}},
    "CAGrad": {"c": 0.4},
    "CAGradWeighting": {"c": 0.4},
    "FairGrad": {"alpha": 2.0},
    "FairGradWeighting": {"alpha": 2.0},
    "Krum": {"n_byzantine": 0},
    "KrumWeighting": {"n_byzantine": 0},
    "NashMTL": {"n_tasks": M},
    "TrimmedMean": {"trim_number": 1},
    "COSMOS": {"lambda_": 2.0, "weights": None},
    "FAMO": {"shape": M},
    "IMTLL": {"shape": M},
    "UW": {"shape": M},
    "PBI": {"theta": 5.0, "weights": None},
    "STCH": {"mu": 0.1},
}


def made(target: str) -> Combiner:
    return build_weighting(
        {"_target_": target, **ARGUMENTS.get(target.rpartition(".")[2], {})}, names(M)
    ).double()


@pytest.mark.parametrize("target", sorted(CLASSES - NEEDS_A_SOLVER - TWO_BATCHES))
def test_training_resumes_from_the_state(target: str) -> None:
    training = ToyTraining(made(target), Toy(M)).run(4)
    file = io.BytesIO()
    torch.save(training.combiner.state_dict(), file)
    file.seek(0)
    again = made(target)
    again.load_state_dict(torch.load(file, weights_only=True))
    resumed = ToyTraining(again, Toy(M), x=training.x, step=training.step).run(4)
    assert torch.equal(resumed.x, training.run(4).x)


@pytest.mark.parametrize("target", sorted(NEEDS_A_SOLVER))
def test_missing_solver_is_named_at_the_start(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(
        ValueError, match=r'needs a solver .* pip install -c constraints\.txt -e "\.\[solvers\]"'
    ):
        made(target)


@pytest.mark.parametrize("target", sorted(TWO_BATCHES))
def test_method_of_two_batches_is_rejected_and_ours_named(target: str) -> None:
    with pytest.raises(ValueError, match=r"needs the Jacobians of two batches; set weighting=(modo|sdmgrad)"):
        made(target)


def test_composed_method_is_invariant_to_the_scale_of_the_losses() -> None:
    J = conflicting(M)
    plain = update(made("torchjd.aggregation.CRMOGMWeighting"), losses_of(M), J).weights
    scaled = update(made("torchjd.aggregation.CRMOGMWeighting"), losses_of(M), 1e-6 * J).weights
    torch.testing.assert_close(scaled, plain)


@pytest.mark.parametrize(
    ("target", "arguments", "name", "changes"),
    [
        ("FairGrad", {"alpha": 2.0}, "fairgrad", {}),
        ("FairGradWeighting", {"alpha": 0.5}, "fairgrad", {"alpha": 0.5}),
        ("AlignedMTLWeighting", {"scale_mode": "median"}, "aligned_mtl", {"scale_mode": "median"}),
        ("AlignedMTL", {"pref_vector": {"t1": 3}}, "aligned_mtl", {"pref_vector": {"t1": 3}}),
        ("IMTLG", {}, "imtl_g", {}),
        ("PCGradWeighting", {}, "pcgrad", {}),
    ],
)
def test_exact_implementation_replaces_torchjds(
    target: str, arguments: dict, name: str, changes: dict
) -> None:
    J = conflicting(M) * torch.tensor([[1e-3], [1.0], [1.0], [1e3]])
    built = build_weighting({"_target_": f"torchjd.aggregation.{target}", **arguments}, names(M)).double()
    torch.manual_seed(0)
    found = update(built, losses_of(M), J).vector
    torch.manual_seed(0)
    assert torch.equal(found, update(make(name, M, **changes), losses_of(M), J).vector)


@pytest.mark.parametrize("every", [1, 3])
def test_nash_mtl_of_torchjd_is_solved_by_ours(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the packages that torchjd's class requires."""
    method = aggregation.NashMTL.__new__(aggregation.NashMTL)
    torch.nn.Module.__init__(method)
    for name, value in {"n_tasks": M, "max_norm": 0.5, "update_weights_every": every}.items():
        monkeypatch.setattr(aggregation.NashMTL, name, value)
    changes = {"max_norm": 0.5, "every": every}
    combiner, expected = adapt(method).double(), make("nash_mtl", M, **changes)
    for seed in range(4):
        J = conflicting(M, seed=seed)
        assert torch.equal(update(combiner, losses_of(M), J).vector, update(expected, losses_of(M), J).vector)


def test_cagrad_of_torchjd_is_solved_by_ours() -> None:
    """Without the packages that torchjd's class requires."""
    method = aggregation.CAGradWeighting.__new__(aggregation.CAGradWeighting)
    torch.nn.Module.__init__(method)
    method.c, method.norm_eps = 0.7, 1e-3
    combiner, expected = adapt(method).double(), make("cagrad", M, c=0.7, norm_eps=1e-3)
    J = conflicting(M)
    assert torch.equal(update(combiner, losses_of(M), J).vector, update(expected, losses_of(M), J).vector)


class Rows(Weighting[Matrix]):
    """A user's weighting of the Jacobian."""

    def forward(self, matrix: Matrix, /) -> torch.Tensor:
        return matrix.abs().sum(1)


class Derived(Rows):
    """A subclass of it."""


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (Rows(), MatrixMethod),
        (Derived(), MatrixMethod),
        (aggregation.WeightedAggregator(Rows()), MatrixMethod),
        (aggregation.ExcessMTLWeighting(), MatrixMethod),
        (aggregation.ExcessMTL(), MatrixMethod),
        (aggregation.MeanWeighting(), GramianMethod),
        (aggregation.Mean(), GramianMethod),
        (aggregation.GradVacWeighting(), GramianMethod),
        (aggregation.UPGrad(), GramianMethod),
        (aggregation.TrimmedMean(1), AggregatorMethod),
    ],
    ids=lambda value: type(value).__name__,
)
def test_weighting_receives_the_type_of_its_base_class(method: object, kind: type) -> None:
    """Decided by torchjd's public types: a version that changes their bases fails here."""
    assert type(adapt(method)) is kind


def test_nothing_private_of_torchjd_is_used() -> None:
    sources = (Path(__file__).parents[3] / "src").rglob("*.py")
    private = re.compile(
        r"^\s*(from|import) torchjd(\.\w+)*\._|from torchjd[\w.]* import .*\b_\w", re.MULTILINE
    )
    assert [str(path) for path in sources if private.search(path.read_text())] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "method", [aggregation.UPGrad(), aggregation.DualProjWeighting(), aggregation.MGDA()]
)
def test_weighting_of_the_gramian_takes_half_precision(method: object, dtype: torch.dtype) -> None:
    J = conflicting(3)
    expected = update(adapt(method), losses_of(3), J).weights
    found = update(adapt(method), losses_of(3).to(dtype), J.to(dtype)).weights
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found.double(), expected.double(), rtol=0.1, atol=0.05)
