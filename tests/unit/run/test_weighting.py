"""Combiners built from YAML keys: names, lists, nested objects and errors."""

import sys

import pytest
import torch
from torchjd.aggregation import DualProjWeighting, UPGradWeighting

from multitask.run.resume import differences
from multitask.run.targets import imported
from multitask.run.weighting import build_weighting
from multitask.weighting.cr_mogm import CRMOGM
from multitask.weighting.torchjds import GramianMethod
from multitask.weighting.wrapper import Rescaled
from tests.unit.weighting.members import config, make

TASKS = ["left", "right"]


def test_mapping_is_in_the_order_of_the_losses() -> None:
    built = build_weighting({"_target_": "torchjd.scalarization.Constant", "weights": {"right": 3}}, TASKS)
    assert built(torch.tensor([1.0, 1.0])) == 4


def test_list_is_in_the_order_of_the_losses() -> None:
    built = build_weighting({"_target_": "torchjd.scalarization.Constant", "weights": [2, 5]}, TASKS)
    assert built(torch.tensor([1.0, 0.0])) == 2


def test_missing_reference_values_are_zero() -> None:
    built = build_weighting(
        {"_target_": "torchjd.scalarization.STCH", "mu": 0.1, "reference": {"left": 1}}, TASKS
    )
    assert built.method.reference.tolist() == [1, 0]


def test_aggregator_is_replaced_by_its_weighting() -> None:
    built = build_weighting({"_target_": "torchjd.aggregation.DualProj"}, TASKS)
    assert isinstance(built, GramianMethod)
    assert isinstance(built.method, DualProjWeighting)


def test_nested_weightings_accept_task_names() -> None:
    inner = {"_target_": "torchjd.aggregation.UPGradWeighting", "pref_vector": {"right": 2}}
    built = build_weighting({"_target_": "multitask.weighting.cr_mogm.CRMOGM", "method": inner}, TASKS)
    assert isinstance(built, CRMOGM)
    assert isinstance(built.method, GramianMethod)
    assert isinstance(built.method.method, UPGradWeighting)
    assert built.method.method.pref_vector.tolist() == [1, 2]


def test_nested_torchjd_weighting_is_built() -> None:
    inner = {"_target_": "torchjd.aggregation.UPGradWeighting"}
    built = build_weighting({"_target_": "torchjd.aggregation.CRMOGMWeighting", "weighting": inner}, TASKS)
    assert isinstance(built, GramianMethod)
    assert isinstance(built.method.weighting, UPGradWeighting)


def test_other_nested_objects_are_instantiated() -> None:
    projector = {"_target_": "torchjd.linalg.QuadprogProjector", "reg_eps": 0.5}
    built = build_weighting(
        {"_target_": "torchjd.aggregation.UPGradWeighting", "projector": projector}, TASKS
    )
    assert built.method.projector.reg_eps == 0.5


def test_wrappers_have_a_fixed_order() -> None:
    built = make("mgda", TASKS, every=2, groups="layer", rescale=True)
    assert isinstance(built, Rescaled)
    assert [type(m).__name__ for m in built.modules()] == [
        "Rescaled",
        "Grouped",
        "Every",
        "MGDA",
        "ModuleDict",
    ]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("weighted_sum", {"weights": {"up": 1}}, "weighting.weights names up, but the tasks are left, right"),
        (
            "weighted_sum",
            {"weights": [1, 2, 3]},
            r"weighting.weights has 3 numbers for 2 tasks \(left, right\)",
        ),
        ("scheduled_sum", {"schedule": {"up": [[0, 1]]}}, "weighting.schedule names up, but the tasks are"),
        (
            "scheduled_sum",
            {"schedule": {"left": [[1, 1], [0, 2]]}},
            "weighting.schedule.left=.* rising times",
        ),
        (
            "scheduled_sum",
            {"schedule": {"left": [[1]]}},
            r"weighting.schedule.left=.* list of \[time, weight\] pairs",
        ),
        ("scheduled_sum", {"unit": "hour"}, "weighting.unit=hour is unknown; choose step or epoch"),
        ("mgda", {"normalization": "l1"}, "weighting.normalization=l1 is unknown; choose none, l2"),
        ("cagrad", {"c": -1}, "weighting.c=-1 must not be negative"),
        ("cagrad", {"norm_eps": 0}, "weighting.norm_eps=0 must be positive"),
        ("nash_mtl", {"max_norm": -1}, "weighting.max_norm=-1 must not be negative"),
        ("fairgrad", {"alpha": -1}, "weighting.alpha=-1 must not be negative"),
        ("gradvac", {"beta": 2}, "weighting.beta=2 must lie between 0 and 1"),
        ("pcd", {"primary": "up"}, "weighting.primary=up is not a task; choose one of left, right"),
        ("pcd", {"tau": 2}, "weighting.tau=2, .* 0 ≤ τ ≤ 1"),
        ("krum", {}, "weighting=krum needs 3 tasks"),
        ("krum", {"n_byzantine": 2}, "weighting=krum needs 5 tasks with weighting.n_byzantine=2"),
        ("trimmed_mean", {}, "weighting.trim_number=1 needs 3 tasks, but there are 2"),
        ("modo", {"gamma": 0}, "weighting.gamma=0 must be positive"),
        ("sdmgrad", {"n_iter": 0}, "n_iter ≥ 1"),
        ("gradnorm", {"lr": -1}, "weighting.lr=-1 must not be negative"),
        ("moco", {"beta": 0}, "weighting.beta=0, .* 0 < β ≤ 1"),
        ("db_mtl", {"beta": 1}, "weighting.beta=1 must be at least 0 and less than 1"),
        ("excess_mtl", {"robust_step_size": 0}, "weighting.robust_step_size=0 must be positive"),
        ("excess_mtl", {"warmup_epochs": -1}, "weighting.warmup_epochs=-1 must not be negative"),
        ("softadapt", {"order": 0}, "weighting.order=0 must be at least 1"),
        ("relobralo", {"tau": 0}, "weighting.alpha=0.95, rho=0.99, tau=0: .* τ > 0 must hold"),
        ("relobralo", {"rho": 2}, "rho=2, .* 0 ≤ ρ ≤ 1"),
        (
            "lr_annealing",
            {"residual": "up"},
            "weighting.residual=up is not a task; choose one of left, right",
        ),
        ("lr_annealing", {"alpha": 2}, "weighting.alpha=2 must lie between 0 and 1"),
        ("ntk", {"steps": 0}, "weighting.steps=0 must be at least 1"),
        ("m_config", {"beta": 1}, "weighting.beta=1 must be at least 0 and less than 1"),
        ("dwa", {"temperature": 0}, "weighting.temperature=0 must be positive"),
        ("cosmos", {"lambda_": -1}, "weighting.lambda_=-1 must not be negative"),
        ("cosmos", {"weights": [0, 0]}, "weighting.weights=.* must not be negative, nor all zero"),
        ("cr_mogm", {"alpha": 2}, "weighting.alpha=2 must lie between 0 and 1"),
        (
            "cr_mogm",
            {"method": {"_target_": "torchjd.aggregation.GradDrop"}},
            "weighting.method must be a weighting",
        ),
        ("mgda", {"every": 0}, "weighting.every=0 must be at least 1"),
        ("mgda", {"groups": "block"}, "weighting.groups=block is unknown; choose trunk, layer or tensor"),
    ],
)
def test_errors_name_the_key(name: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(name, TASKS, **changes)


def test_other_classes_are_rejected() -> None:
    with pytest.raises(TypeError, match=r"weighting\._target_ is a Linear; set a torchjd scalarizer"):
        build_weighting({"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}, TASKS)


@pytest.mark.parametrize("losses", [[1.0, 0.0], [1.0, -2.0]], ids=["zero", "negative"])
@pytest.mark.parametrize("name", ["gls", "si", "loss_balanced"])
def test_logarithmic_weightings_require_positive_losses(name: str, losses: list[float]) -> None:
    with pytest.raises(ValueError, match=f"weighting={name} needs losses above zero"):
        make(name, TASKS)(torch.tensor(losses))


def test_loss_weighted_softadapt_requires_non_negative_losses() -> None:
    with pytest.raises(ValueError, match=r"weighting\.loss_weighted=true needs losses that are not negative"):
        make("softadapt", TASKS, loss_weighted=True)(torch.tensor([1.0, -1.0]))


def test_famo_requires_losses_above_its_bounds() -> None:
    with pytest.raises(ValueError, match=r"weighting=famo needs losses above weighting\.min_losses"):
        make("famo", TASKS, min_losses={"left": 2})(torch.tensor([1.0, 1.0]))


def test_missing_solver_is_reported_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(
        ValueError, match=r'needs a solver .* pip install -c constraints\.txt -e "\.\[solvers\]"'
    ):
        build_weighting({"_target_": "torchjd.aggregation.CAGradWeighting", "c": 0.4}, TASKS)


@pytest.mark.parametrize(
    ("before", "name", "state"),
    [
        ("multitask.weighting.gls.GLS", "gls", {}),
        ("multitask.weighting.si.SI", "si", {}),
        ("multitask.weighting.loss_balanced.LossBalanced", "loss_balanced", {}),
        ("torchjd.aggregation.IMTLGWeighting", "imtl_g", {"": {}}),
        ("torchjd.aggregation.AlignedMTLWeighting", "aligned_mtl", {"": {}, "weighting": {}}),
        ("multitask.weighting.byzantine.krum", "krum", {"": {}}),
        ("multitask.weighting.nash_mtl.NashMTL", "nash_mtl", {}),
    ],
)
def test_checkpoints_before_0_2_are_loaded(before: str, name: str, state: dict) -> None:
    """Configs name the old class path, and states may contain the empty state of a torchjd weighting."""
    tasks = ["a", "b", "c"]
    built = build_weighting({**config(name, tasks), "_target_": before}, tasks)
    assert type(built) is type(make(name, tasks))
    module = torch.nn.ModuleDict({"weighting": built})
    module.load_state_dict({"weighting._extra_state": state} if state else {}, strict=True)
    if state:
        with pytest.raises(RuntimeError, match=r"weighting\._extra_state"):
            module.load_state_dict({"weighting._extra_state": {"": {"step": 3}}}, strict=True)


def test_older_class_paths_are_imported_and_resumed() -> None:
    for before, now in (("uw.UW", "scalarizations.UW"), ("sdmgrad.SDMGrad", "halves.SDMGrad")):
        names = [f"multitask.weighting.{name}" for name in (before, now)]
        assert imported("weighting._target_", names[0]) is imported("weighting._target_", names[1])
        there, here = ({"weighting": {"_target_": name}} for name in names)
        assert not [*differences(there, here)]
