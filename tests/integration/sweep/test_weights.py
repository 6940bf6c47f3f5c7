"""Sweeps over loss weights, and their front in compare.py."""

from pathlib import Path

import numpy as np
import pytest

from multitask.errors import ConfigError
from multitask.evaluation.compare import compare
from multitask.sweep.simplex import override, points
from tests.integration.script_runner import Scripts
from tests.integration.sweep.small import SMALL, records_of, results_of, runs_of


def test_grid_covers_the_simplex() -> None:
    assert points(2, "grid", 4, 0, 1.0, 0) == [[0.25, 0.75], [0.5, 0.5], [0.75, 0.25]]
    three = points(3, "grid", 10, 0, 1.0, 0)
    assert len({tuple(point) for point in three}) == len(three) == 36
    assert np.allclose(np.sum(three, axis=1), 1)
    assert np.min(three) == pytest.approx(0.1)
    for tasks, steps, message in ((3, 2, "gives none"), (40, 60, "gives more than 1000")):
        with pytest.raises(ConfigError, match=message):
            points(tasks, "grid", steps, 0, 1.0, 0)


def test_draws_follow_the_dirichlet_distribution_and_are_reproducible() -> None:
    drawn = np.array(points(3, "dirichlet", 0, 4000, 2.0, 1))
    assert np.allclose(drawn.sum(1), 1, atol=2e-4)
    # Of a symmetric Dirichlet distribution: mean 1/m, variance (m − 1)/(m²(m c + 1)).
    assert np.allclose(drawn.mean(0), 1 / 3, atol=0.01)
    assert np.allclose(drawn.var(0), 2 / (9 * 7), atol=0.003)
    assert points(3, "dirichlet", 0, 5, 2.0, 1) == drawn[:5].tolist()
    assert override("k", ["a", "b"], [[0.25, 0.75], [0.5, 0.5]]) == "k={a:0.25,b:0.75},{a:0.5,b:0.5}"


@pytest.mark.smoke
@pytest.mark.slow
def test_weight_grid_is_compared_as_a_front(scripts: Scripts, arrays: Path, tmp_path: Path) -> None:
    small = (*SMALL, f"data.path={arrays}", "hparams_search=weights", "hydra.sweeper.steps=4")
    ran = scripts.run(*small, "seed=0,1")
    assert ran.code == 0, ran.err
    settings = {row["variant"] for run in runs_of(ran.folder) for row in results_of(run)}
    assert settings == {f"weights={{a:{a},b:{b}}}" for a, b in ((0.25, 0.75), (0.5, 0.5), (0.75, 0.25))}
    assert len({record["config_digest"] for record in records_of(ran.folder)}) == 1
    (comparison,) = compare(str(ran.folder), tmp_path / "out")
    assert comparison.entries == []
    (front,) = comparison.fronts.values()
    assert {entry.variant for entry in front} == settings
    assert {entry.seeds for entry in front} == {2}
    header, of_front, of_all = (tmp_path / "out" / "hypervolumes.csv").read_text().splitlines()
    assert header == "experiment,front,x,y,reference_x,reference_y,hypervolume"
    assert of_front.startswith("npz,weighted_sum,a/loss,b/loss,")
    assert of_front.rpartition(",")[2] == of_all.rpartition(",")[2]

    refused = scripts.run(*small, "weighting=upgrad")
    assert refused.code == 1
    assert "weighting=upgrad has no weights; choose weighted_sum, stch or pbi" in refused.err
