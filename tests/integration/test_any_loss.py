"""Each kind of loss over several heads' features, by the command in its config file."""

import re

import pytest
import torch

from tests.integration.script_runner import ROOT, Scripts
from tests.integration.small import checkpoint, metrics_on_test

pytestmark = pytest.mark.slow

KINDS = ROOT / "configs" / "task" / "kinds"
SHORT = ("logger=csv", "trainer.max_epochs=2", "trainer.limit_train_batches=3")
WANTED = {
    "second_loss": {("rings", "mae"), ("rings_l1", "mae"), ("rings_l1", "loss")},
    "distillation": {("student", "accuracy"), ("distillation", "loss")},
    "contrastive": {("left", "accuracy"), ("contrastive", "loss")},
    "divergence": {("right", "accuracy"), ("divergence", "loss")},
    "forces": {("energy", "mae"), ("forces", "mae"), ("forces", "loss")},
    "residual": {("u", "mae"), ("residual", "loss")},
}


def command(kind: str) -> list[str]:
    """Return the overrides of the first command in a kind's file, without its weighting."""
    found = re.search(r"scripts/train\.py (.*)", (KINDS / f"{kind}.yaml").read_text(encoding="utf-8"))
    assert found is not None
    return [word for word in found[1].split() if not word.startswith("weighting=")]


@pytest.mark.smoke("upgrad-second_loss", "upgrad-residual", "uw-forces", "upgrad-divergence")
@pytest.mark.parametrize("kind", WANTED)
@pytest.mark.parametrize("weighting", ["uw", "upgrad"])
def test_documented_command_runs(kind: str, weighting: str, scripts: Scripts) -> None:
    ran = scripts.run(*command(kind), f"weighting={weighting}", *SHORT)
    assert ran.code == 0, ran.err
    assert ran.err == ""
    found = metrics_on_test(ran.folder)
    assert WANTED[kind] <= set(found)
    assert all(torch.tensor(value).isfinite() for value in found.values())


@pytest.mark.parametrize(
    "more", [["weighting=modo"], ["weighting=famo", "trainer.accumulate_grad_batches=2"]]
)
@pytest.mark.parametrize("kind", ["distillation", "forces", "residual"])
def test_weightings_that_split_or_repeat_the_losses_run(kind: str, more: list[str], scripts: Scripts) -> None:
    ran = scripts.run(*command(kind), *more, *SHORT)
    assert ran.code == 0, ran.err
    assert WANTED[kind] <= set(metrics_on_test(ran.folder))


@pytest.mark.parametrize("kind", ["forces", "divergence"])
def test_resume_is_bit_for_bit(kind: str, scripts: Scripts) -> None:
    """Also with sampled features, and with derivatives."""
    overrides = [*command(kind), "weighting=upgrad", "logger=csv", "trainer.limit_train_batches=3"]
    whole = scripts.run(*overrides, "trainer.max_epochs=2")
    first = scripts.run(*overrides, "trainer.max_epochs=1")
    second = scripts.run(
        *overrides, "trainer.max_epochs=2", f"ckpt_path={first.folder}/checkpoints/last.ckpt"
    )
    assert second.code == 0, second.err
    expected = checkpoint(whole.folder)["state_dict"]
    for name, value in checkpoint(second.folder)["state_dict"].items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*command("contrastive"), "tasks.contrastive.count=null"],
            "tasks.contrastive.loss is not the mean over its count that it is taken for",
        ),
        (
            [*command("contrastive"), "weighting=iwmtl"],
            "tasks.contrastive.count=batch says that an example alone has no loss",
        ),
        (
            [*command("distillation"), "weighting=upgrad", "weighting.engine=features"],
            "tasks.distillation is a loss of more than a head's features",
        ),
        (
            [*command("residual"), "trunk=mlp_small"],
            "use a smooth activation such as Tanh, for example trunk=mlp_smooth",
        ),
        (
            ["weighting=modo", "data.batch_size=1"],
            "weighting=modo needs the losses of two halves of each, so that no step would be taken",
        ),
        ([*command("forces"), "only=forces"], "no task 'energy' makes predictions"),
    ],
)
def test_invalid_config_is_rejected_before_the_run(
    overrides: list[str], message: str, scripts: Scripts
) -> None:
    ran = scripts.run(*overrides, "logger=csv")
    assert ran.code == 1
    assert "Traceback" not in ran.err
    last = ran.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert not list(scripts.logs.glob("*/runs/*"))
