"""Any class of torchjd by a YAML of the user's own: it goes on where it stopped; its solver's failures are counted."""

import io
import logging
from typing import Any

import pytest
import torch
from torchjd import aggregation, scalarization
from torchjd.aggregation import Aggregator, FairGradWeighting, Weighting
from torchjd.aggregation._nash_mtl import _NashMTLWeighting
from torchjd.scalarization import Scalarizer

from multitask.run.weighting import build_weighting
from multitask.weighting.adapter import MatrixMethod
from multitask.weighting.base import Combiner
from tests.weighting.weighting_members import Course, Toy, conflicting, losses_of, names, update

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
def test_it_goes_on_where_it_stopped(target: str) -> None:
    course = Course(made(target), Toy(M)).run(4)
    file = io.BytesIO()
    torch.save(course.combiner.state_dict(), file)
    file.seek(0)
    again = made(target)
    again.load_state_dict(torch.load(file, weights_only=True))
    resumed = Course(again, Toy(M), x=course.x, step=course.step).run(4)
    assert torch.equal(resumed.x, course.run(4).x)


@pytest.mark.parametrize("target", sorted(NEEDS_A_SOLVER))
def test_a_solver_that_is_not_installed_is_named_at_the_start(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchjd import _mixins

    monkeypatch.setattr(_mixins, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r'needs a solver .* pip install -c constraints\.txt -e "\.\[solvers\]"'
    ):
        made(target)


@pytest.mark.parametrize("target", sorted(TWO_BATCHES))
def test_what_wants_two_batches_is_referred_to_our_own(target: str) -> None:
    with pytest.raises(
        ValueError, match=r"wants the Jacobians of two batches; take weighting=(modo|sdmgrad)"
    ):
        made(target)


def test_torchjds_composition_is_invariant_to_the_scale_of_the_losses() -> None:
    J = conflicting(M)
    plain = update(made("torchjd.aggregation.CRMOGMWeighting"), losses_of(M), J).weights
    scaled = update(made("torchjd.aggregation.CRMOGMWeighting"), losses_of(M), 1e-6 * J).weights
    torch.testing.assert_close(scaled, plain)


def test_an_equation_that_is_not_solved_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    combiner = made("torchjd.aggregation.FairGrad")
    with caplog.at_level(logging.WARNING):
        update(combiner, losses_of(M), conflicting(M))
        assert combiner.failures == 0
        update(combiner, losses_of(M), conflicting(M) * torch.tensor([[0.0], [1.0], [1.0], [1.0]]))
    assert combiner.failures == 1
    assert combiner.solver_seconds > 0
    assert (
        "FairGradWeighting: the equation is solved to 1e+00 only; its weights are taken as they are"
        in caplog.text
    )


@pytest.mark.parametrize("wrong", ["raises", "nan"])
def test_a_solver_that_fails_leaves_the_trunk_and_is_counted(
    wrong: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forward(self: FairGradWeighting, gramian: torch.Tensor, /) -> torch.Tensor:
        if wrong == "raises":
            raise RuntimeError("Solver 'ECOS'\nfailed")
        return torch.full_like(gramian[0], torch.nan)

    monkeypatch.setattr(FairGradWeighting, "forward", forward)
    combiner = made("torchjd.aggregation.FairGrad")
    with caplog.at_level(logging.WARNING):
        assert update(combiner, losses_of(M), conflicting(M)).vector.norm() == 0
    assert combiner.failures == 1
    assert "no solution" in caplog.text
    assert "the trunk is left as it is in this step" in caplog.text


def test_nash_makes_its_program_again_in_a_resumed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for its solver, which returns what torchjd's falls back to: that is no solution."""
    from torchjd import _mixins

    class Nash(_NashMTLWeighting):
        made = 0

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self._n_tasks, self._max_norm, self._update_weights_every, self._optim_niter = M, 0.0, 1, 20
            self.step, self.prvs_alpha = 3.0, torch.ones(M, dtype=torch.float64).numpy()

        def _init_optim_problem(self) -> None:
            self.made += 1
            self.prob = None

        def _solve_optimization(self, gtg: Any) -> Any:
            return self.prvs_alpha

    monkeypatch.setattr(_mixins, "find_spec", lambda name: True)
    method = Nash()
    combiner = MatrixMethod(method)
    for _ in range(2):
        update(combiner, losses_of(M), conflicting(M))
    assert method.made == 1
    assert combiner.failures == 2
