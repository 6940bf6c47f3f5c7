"""Trajectories of many runs in one plot."""

import json
from pathlib import Path

import numpy as np
import pytest

from multitask.evaluation.errors import ComparisonError
from multitask.evaluation.plots.trajectories import draw_trajectories, read_trajectories


def write_files(folder: Path, method: str, start: float) -> None:
    """Write the files of a run of two steps."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"method": method}))
    (folder / "trajectory.csv").write_text(
        f"step,x1,x2,first,second\n0,{start},3,1,1\n1,0,0,0,0\n2,1,-1,0,1\n"
    )
    axis = np.linspace(-5, 5, 11)
    mean = axis[:, None] ** 2 + axis[None] ** 2
    np.savez(
        folder / "landscape.npz", x1=axis, x2=axis, mean=mean, pareto_set=np.array([[0.0, 0.0], [1.0, -1.0]])
    )


def test_one_panel_per_method_with_all_its_trajectories(tmp_path: Path) -> None:
    for method in ("mean", "upgrad", "mgda", "pcgrad"):
        for start in (-4.0, 2.0):
            write_files(tmp_path / f"{method}_{start}", method, start)
    figure = draw_trajectories(read_trajectories(tmp_path))
    shown = [panel for panel in figure.axes if panel.axison]
    assert [panel.get_title() for panel in shown] == ["mean", "mgda", "pcgrad", "upgrad"]
    for panel in shown:
        starts = [line.get_xydata()[0].tolist() for line in panel.lines if line.get_marker() == "o"]
        ends = [line.get_xydata()[0].tolist() for line in panel.lines if line.get_marker() == "*"]
        assert starts == [[-4.0, 3.0], [2.0, 3.0]]
        assert ends == [[1.0, -1.0]] * 2
        assert panel.get_xlim() == (-5.0, 5.0)
    figure.savefig(tmp_path / "figure.png")


def test_folder_without_trajectories_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match="contains no trajectory; make some with"):
        read_trajectories(tmp_path)
