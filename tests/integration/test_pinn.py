"""Physics-informed experiments through the script: loss groups, precision, processes, resumption and the plot."""

import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from tests.integration.script_runner import ROOT, Ran, Scripts, import_from
from tests.integration.small import checkpoint, leaves, metrics_on_test, rows

pytestmark = pytest.mark.slow
SMALL = (
    "data.steps=4",
    "data.points.inside=60",
    "data.points.boundary=12",
    "data.grids=[[8,6],[10,7]]",
    "model.widths=[8,8]",
    "trainer.max_epochs=2",
    "callbacks.solution.resolution=20",
)
EXPERIMENTS = {
    "burgers": ({"residual", "boundary", "initial"}, "u"),
    "kovasznay": ({"residual", "boundary"}, "uvp"),
    "helmholtz": ({"residual", "boundary"}, "u"),
    "beltrami": ({"residual", "boundary", "initial"}, "uvwp"),
}
TWO = "model.losses={residual:[residual],conditions:[boundary,initial]}"


def run(scripts: Scripts, name: str, *more: str, logger: str = "csv") -> Ran:
    ran = scripts.run(f"experiment=pinn_{name}", *SMALL, f"logger={logger}", *more)
    assert ran.code == 0, ran.err
    return ran


def metrics(folder: Path) -> dict[tuple[str, str], float]:
    assert {row["higher_is_better"] for row in rows(folder / "results.csv")} == {"False"}
    return metrics_on_test(folder)


@pytest.mark.smoke("kovasznay")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_records_errors_and_writes_a_plot(name: str, scripts: Scripts) -> None:
    small = ["data.grids=[[3,3,3,3],[4,3,3,3]]"] if name == "beltrami" else []
    ran = run(scripts, name, "weighting=config", *small)
    assert ran.err == ""
    losses, fields = EXPERIMENTS[name]
    wanted = {(loss, "loss") for loss in losses}
    found = metrics(ran.folder)
    assert set(found) - {("combined", "loss")} == wanted | {
        (f, m) for f in fields for m in ("relative_l2", "mse")
    }
    assert all(torch.tensor(value).isfinite() for value in found.values())
    assert ran.record["resume"] == "exact"
    assert ran.record["multiplicative"] == ["relative_l2", "mse"]
    plot = imread(ran.folder / "solution.png")
    assert plot.shape[0] == 360 * len(fields)
    assert plot.std() > 0


def test_losses_are_grouped_by_the_config(scripts: Scripts) -> None:
    assert {t for t, m in metrics(run(scripts, "burgers", TWO).folder) if m == "loss"} == {
        "residual",
        "conditions",
        "combined",
    }
    three = metrics(run(scripts, "kovasznay", "model.losses=null", "weighting=upgrad").folder)
    assert {t for t, m in three if m == "loss"} == {"momentum", "continuity", "boundary"}


@pytest.mark.parametrize("weighting", ["upgrad", "relobralo", "m_config", "ntk"])
def test_resume_is_bit_for_bit(weighting: str, scripts: Scripts) -> None:
    """A run stopped within an epoch draws the same points as an uninterrupted one."""
    every = ["weighting.steps=2"] if weighting == "ntk" else []
    fixed = [f"weighting={weighting}", *every, "callbacks.checkpoint.every_n_train_steps=3", "scheduler=none"]
    whole = run(scripts, "burgers", *fixed)
    first = run(scripts, "burgers", *fixed, "trainer.max_steps=6")
    second = run(scripts, "burgers", *fixed, f"ckpt_path={first.folder}/checkpoints/last.ckpt")
    found, expected = (dict(leaves(checkpoint(ran.folder)["state_dict"])) for ran in (second, whole))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value) if isinstance(value, torch.Tensor) else found[key] == value, key


@pytest.mark.parametrize(
    "weighting", ["weighted_sum", "upgrad", "lr_annealing", "softadapt", "m_config", "ntk"]
)
def test_micro_batches_and_processes_match_one_batch(weighting: str, scripts: Scripts) -> None:
    fixed = [f"weighting={weighting}", "trainer.precision=64-true", "optimizer=sgd", "trainer.max_epochs=1"]
    fixed += ["data.steps=8", "scheduler=none"]
    whole = run(scripts, "burgers", *fixed, "data.batch_size=4")
    parts = run(scripts, "burgers", *fixed, "data.batch_size=2", "trainer.accumulate_grad_batches=2")
    split = run(scripts, "burgers", *fixed, "data.batch_size=2", "trainer=ddp_cpu")
    expected = checkpoint(whole.folder)["state_dict"]
    assert expected["net.0.weight"].dtype == torch.float64
    for ran in (parts, split):
        found = checkpoint(ran.folder)["state_dict"]
        for key in expected:
            if key.startswith("net."):
                torch.testing.assert_close(found[key], expected[key], rtol=1e-10, atol=1e-12)
    measured = [metrics(ran.folder) for ran in (whole, parts, split)]
    for key, value in measured[0].items():
        assert measured[1][key] == pytest.approx(value, rel=1e-9)
        assert measured[2][key] == pytest.approx(value, rel=1e-9)


def test_weighting_of_half_batches_needs_two_draws(scripts: Scripts) -> None:
    run(scripts, "helmholtz", "weighting=modo", "data.batch_size=2")
    ran = scripts.run("experiment=pinn_helmholtz", *SMALL, "logger=csv", "weighting=modo")
    assert ran.code == 1
    assert "raise data.batch_size=1" in ran.err


@pytest.mark.smoke
def test_plot_is_logged_to_wandb(scripts: Scripts) -> None:
    ran = run(scripts, "burgers", logger="wandb")
    (logged,) = ran.folder.glob("wandb/offline-run-*/files/media/images/solution_*.png")
    assert logged.read_bytes() == (ran.folder / "solution.png").read_bytes()


def test_evaluation_of_the_checkpoint_reproduces_the_metrics(scripts: Scripts) -> None:
    ran = run(scripts, "burgers")
    again = scripts.run(f"ckpt_path={ran.folder}/checkpoints/last.ckpt", script="eval")
    assert again.code == 0, again.err
    assert metrics(again.folder) == metrics(ran.folder)


def test_documented_problem_trains(scripts: Scripts, tmp_path: Path) -> None:
    """The command of the page trains; conditions default to the solution's."""
    page = (ROOT / "docs" / "pinn.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(# mine\.py.*?)```", page, re.DOTALL)
    command = re.search(r"train\.py (.*\\\n.*Heat.*)\n", page)
    assert code
    assert command
    (tmp_path / "mine.py").write_text(code[1])
    given = [
        word for word in shlex.split(command[1].replace("\\\n", "")) if not word.startswith("data.points")
    ]
    small = [each for each in SMALL if not each.startswith("data.points")]
    points = "data.points={inside:50,boundary:6,initial:5}"
    ran = scripts.run(*given, *small, points, "logger=csv", before=partial(import_from, str(tmp_path)))
    assert ran.code == 0, ran.err
    assert ran.record["experiment"] == "heat"
    assert ("u", "relative_l2") in metrics(ran.folder)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["callbacks=solution"], "callbacks=solution draws a model=pinn with at least two axes"),
        (["experiment=pinn_burgers", "model.losses={all:[residual]}"], "model.losses has the terms residual"),
        (["experiment=pinn_burgers", "data.points.boundary=1"], "data.points.boundary=1 must be at least 2"),
        (
            ["experiment=pinn_burgers", "weighting=lr_annealing", "weighting.residual=pde"],
            "weighting.residual=pde is not a task; choose one of residual, boundary, initial",
        ),
        (
            ["experiment=pinn_burgers", "evaluation.multiplicative=[l1]"],
            "evaluation.multiplicative names l1, which is not a metric; choices: boundary/loss",
        ),
        (["weighting=ntk"], "weighting=ntk needs the traces of the residuals' kernel"),
        (["experiment=pinn_burgers", "weighting=iwmtl"], "define losses_by_part in it"),
        (
            ["experiment=pinn_burgers", "data.steps=5", "trainer=ddp_cpu"],
            "last batch has 0 examples on one process, which the model cannot be trained on (the batch has no "
            "points); set data.drop_last=true",
        ),
    ],
)
def test_invalid_config_is_rejected_before_training(
    overrides: list[str], message: str, scripts: Scripts
) -> None:
    ran = scripts.run(*overrides, "logger=csv")
    assert ran.code == 1
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not list(scripts.logs.glob("*/runs/*"))
