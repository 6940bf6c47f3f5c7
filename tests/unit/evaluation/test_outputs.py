"""Outputs of a comparison: CSV files, plots, the page and the terminal."""

import base64
import io
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from multitask.evaluation.compare import compare, load
from multitask.evaluation.comparison import Settings, compare_records
from multitask.evaluation.errors import ComparisonError
from tests.unit.evaluation.hand_records import write_run, write_sweep, write_table

PUBLISHED = Path(__file__).parents[3] / "data" / "published"


class Reader(HTMLParser):
    """Collects the text and resources of a page, and checks that its tags are nested."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.loads: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        known = dict(attributes)
        if tag == "img":
            self.images.append(known)
        self.loads += [value for key in ("src", "href") if (value := known.get(key))]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A comparison with every kind of entry: its folder and its terminal output."""
    root = tmp_path_factory.mktemp("made")
    sweep = write_sweep(root / "sweep", {"weighted_sum": 0.02, "upgrad": 0.012, "mgda": 0.0125})
    for setting in ("[1,3]", "[1,1]", "[3,1]"):
        results = {"left/accuracy": 0.87, "right/accuracy": 0.86}
        write_run(sweep / f"grid{setting}", "weighted_sum", 0, results, variant=f"weights={setting}")
    write_run(sweep / "bad", "upgrad", 9, {}, status="failed", error="<b>boom</b>")
    write_run(sweep / "odd", "<script>alert(1)</script>", 0, {"left/accuracy": 0.9, "right/accuracy": 0.8})
    for seed in range(2):
        results = {"left/accuracy": 0.95, "right/accuracy": 0.95}
        write_run(sweep / f"cheat_{seed}", "cheat", seed, results, selection="best on test")
    printed = io.StringIO()
    source = [str(sweep), str(PUBLISHED / "celeba.csv")]
    compare(source, root / "out", console=Console(file=printed, width=140))
    return root / "out", printed.getvalue()


def test_every_plot_is_drawn(made: tuple[Path, str]) -> None:
    names = {path.name for path in (made[0] / "plots").iterdir()}
    assert names == {
        *(f"toy_{name}.png" for name in ("delta_m", "delta_m_cost", "tasks", "pareto")),
        *(f"toy_{name}.png" for name in ("train_loss", "val_loss", "weights", "conflict")),
        "celeba-published_delta_m.png",
    }
    for path in (made[0] / "plots").iterdir():
        plot = Image.open(path)
        assert plot.width == 1150  # 4.6 inches at 250 dpi
        assert len(plot.convert("L").getcolors() or []) > 20


def test_page_is_one_well_formed_file(made: tuple[Path, str]) -> None:
    text = (made[0] / "index.html").read_text(encoding="utf-8")
    page = Reader(text)
    assert all(load.startswith(("data:", "#")) for load in page.loads)
    assert "url(" not in text
    assert "<script" not in text
    shown = {base64.b64decode(str(image["src"]).split(",")[1]) for image in page.images}
    assert shown == {path.read_bytes() for path in (made[0] / "plots").iterdir()}
    assert all(image["alt"] for image in page.images)


def test_page_reports_cautions_and_failures(made: tuple[Path, str]) -> None:
    text = " ".join(" ".join(Reader((made[0] / "index.html").read_text(encoding="utf-8")).text).split())
    assert "cheat" in text
    assert "selected on test" in text
    assert "Selected on the test split, so the results are too good: cheat." in text
    assert "failed: <b>boom</b>" in text  # as text, not as markup
    assert "Not every run of a method is averaged: upgrad 5 of 6." in text
    assert "The methods' results were selected by different rules" in text
    assert re.search(
        r"not separable with \d seeds; about \d+ would be needed for a difference of 1.00 points", text
    )
    assert "Hypervolume, against the worst value" in text
    assert "published by others" in text
    assert "FAMO: Fast Adaptive Multitask Optimization (2023)" in text


def test_terminal_reports_the_same(made: tuple[Path, str]) -> None:
    printed = made[1]
    for words in (
        "Δm % ↓", "Δp % ↑", "mean rank ↓", "5 of 6", "best on test", "failed: <b>boom</b>", "Holm",
        "a front: neither", "weights=[1,3]", "Published by others",
    ):  # fmt: skip
        assert words in printed


def test_csv_files_contain_unrounded_numbers(made: tuple[Path, str]) -> None:
    summary = pd.read_csv(made[0] / "summary.csv").set_index(["method", "variant"])
    results = pd.read_csv(made[0] / "means.csv", keep_default_na=False)
    values = pd.concat(
        pd.read_csv(file) for file in sorted((made[0].parent / "sweep").glob("upgrad_*/results.csv"))
    )
    left = values[values["task"] == "left"]["value"]
    row = results[(results["method"] == "upgrad") & (results["task"] == "left")].iloc[0]
    assert float(row["mean"]) == pytest.approx(left.mean(), rel=1e-12)
    assert int(row["seeds"]) == 5
    single = results[results["method"] == "single_task"]
    assert set(single["task"]) == {"left", "right"}
    assert bool(summary["selected_on_test"]["cheat"].iloc[0])
    assert pd.read_csv(made[0] / "set_aside.csv")["reason"].tolist() == ["failed: <b>boom</b>"]
    assert len(pd.read_csv(made[0] / "published.csv")) == 12
    pairs = pd.read_csv(made[0] / "pairs.csv")
    assert {"difference", "low", "high", "p_holm", "separable", "needed"} <= set(pairs)


@pytest.mark.slow
def test_repeated_comparison_writes_the_same_bytes(sweep: Path, tmp_path: Path) -> None:
    runs = sorted(str(path) for path in sweep.iterdir())
    compare(str(sweep), tmp_path / "once")
    before = tmp_path / "again" / "plots"
    before.mkdir(parents=True)
    (before / "of_the_last_comparison_pareto.png").touch()
    (before / "of_a_user.png").touch()
    compare(runs[::-1], tmp_path / "again")
    (before / "of_a_user.png").unlink()
    assert files(tmp_path / "once") == files(tmp_path / "again")


def test_many_tasks_are_drawn_as_a_heat_map_and_one_curve(tmp_path: Path) -> None:
    for method, loss in (("single_task", 0.0), ("uw", 0.01), ("upgrad", 0.02)):
        for seed in range(2):
            results = {f"t{task:02d}/f1": 0.8 - loss + 0.001 * seed * task for task in range(20)}
            curves = [
                {"step": step} | {f"weight/t{task:02d}": 1 + task for task in range(20)} for step in (0, 1)
            ]
            write_run(tmp_path / "runs" / f"{method}{seed}", method, seed, results, curves=curves)
    compare(str(tmp_path / "runs"), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out" / "plots").iterdir()}
    assert names == {"toy_delta_m.png", "toy_tasks.png", "toy_weights.png"}


def test_single_run_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "upgrad", 0, {"left/accuracy": 0.9, "right/accuracy": 0.8})
    printed = io.StringIO()
    (comparison,) = compare(str(tmp_path / "run"), tmp_path / "out", console=Console(file=printed))
    assert comparison.pairs.empty
    assert "There is no Δm" in printed.getvalue()
    Reader((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))


def test_only_failed_runs_are_rejected_with_their_error(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "bad", "uw", 0, {}, status="failed", error="no memory")
    with pytest.raises(ComparisonError, match="failed: no memory"):
        compare(str(tmp_path / "runs"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ten_thousand_rows_are_compared(tmp_path: Path) -> None:
    methods = ["single_task", "weighted_sum", *(f"m{i}" for i in range(8))]
    rows = [
        {"method": method, "seed": seed, "task": f"t{task}", "metric": "acc", "split": "test"}
        | {"value": 0.5 + 0.01 * ((place * 7 + seed * 3 + task) % 11), "higher_is_better": True}
        for place, method in enumerate(methods)
        for seed in range(25)
        for task in range(40)
    ]
    assert len(rows) == 10_000
    (comparison,) = compare_records(load(str(write_table(tmp_path / "big.csv", rows))), Settings())
    assert len(comparison.entries) == 9
    assert all(entry.seeds == 25 and len(entry.means) == 40 for entry in comparison.entries)
    assert len(comparison.pairs) == 36 * (2 + 1 + 40)


def test_no_training_code_is_imported() -> None:
    names = "{'torch', 'lightning', 'torchjd', 'torchmetrics', 'wandb', 'matplotlib.pyplot'}"
    code = f"import sys, multitask.evaluation.compare; print({names} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                            env={"PYTHONPATH": str(Path(__file__).parents[3] / "src")})  # fmt: skip
    assert answer.stdout.strip() == "set()"


def _table(file: Path, *names: tuple[str, str], experiment: str = "") -> Path:
    row = {"method": "uw", "seed": 0, "split": "test", "value": 0.5, "higher_is_better": True}
    return write_table(file, [row | {"task": t, "metric": m, "experiment": experiment} for t, m in names])


def test_two_metrics_are_never_averaged_under_one_key(tmp_path: Path) -> None:
    source = str(_table(tmp_path / "theirs.csv", ("a/b", "c"), ("a", "b/c")))
    with pytest.raises(
        ComparisonError, match="the task 'a' with the metric 'b/c' and the task 'a/b' with 'c' are both"
    ):
        compare(source, tmp_path / "out")


def test_columns_of_the_summary_have_distinct_names(tmp_path: Path) -> None:
    names = [(task, metric) for task in ("left", "right") for metric in ("acc", "acc_low")]
    source = str(_table(tmp_path / "theirs.csv", *names))
    with pytest.raises(ComparisonError, match=r"two columns mean/acc_low, .* metrics=\[…\]\."):
        compare(source, tmp_path / "out")
    compare(source, tmp_path / "out", Settings(metrics=["acc_low"]))


def test_experiments_with_similar_names_have_separate_plots(tmp_path: Path) -> None:
    names = ("a b", "a-b", "A/b")
    sources = [str(_table(tmp_path / f"{i}.csv", ("left", "acc"), experiment=e)) for i, e in enumerate(names)]
    compare(sources, tmp_path / "out")
    found = sorted(path.name for path in (tmp_path / "out" / "plots").iterdir())
    assert found == ["A-b_tasks.png", "a-b-2_tasks.png", "a-b-3_tasks.png"]


def _against(baseline: list[float], methods: dict[str, float], folder: Path) -> tuple[str, str, pd.DataFrame]:
    """Return terminal output, page and summary.csv for methods with the given right/r2 and a left/r2 of 0.8."""
    for seed, value in enumerate(baseline):
        results = {"left/r2": 0.8 + 0.01 * seed, "right/r2": value}
        write_run(folder / "runs" / f"single{seed}", "single_task", seed, results)
        for method, own in methods.items():
            results = {"left/r2": 0.79 + 0.01 * seed, "right/r2": own * (1 + 0.01 * seed)}
            write_run(folder / "runs" / f"{method}{seed}", method, seed, results)
    printed = io.StringIO()
    compare(str(folder / "runs"), folder / "out", console=Console(file=printed, width=1000))
    page = " ".join(
        " ".join(Reader((folder / "out" / "index.html").read_text(encoding="utf-8")).text).split()
    )
    return printed.getvalue(), page, pd.read_csv(folder / "out" / "summary.csv").set_index("method")


def test_all_outputs_report_a_baseline_near_zero(tmp_path: Path) -> None:
    printed, page, summary = _against([0.02, -0.01, 0.03], {"uw": 0.6, "upgrad": 0.5}, tmp_path)
    why = "the baseline of right/r2 is 0.01333, and its interval over 3 seeds, "
    assert f"There is no Δm: {why}" in printed
    assert f"There is no Δm: {why}" in page
    assert summary["no_delta_because"].str.contains(why, regex=False).all()
    assert summary["delta_m"].isna().all()
    assert summary["mean_rank"].notna().all()


def test_a_metric_that_dwarfs_the_baseline_gives_no_change_and_leaves_the_others_theirs(
    tmp_path: Path,
) -> None:
    printed, page, summary = _against(
        [1e-9, 1.1e-9, 1.2e-9], {"uw": 1e-9, "upgrad": 0.5, "mgda": 0.4}, tmp_path
    )
    for text in (printed, page):
        assert "uw has the Δm" in text
        for method, value in (("upgrad", "0.505"), ("mgda", "0.404")):
            why = f"{method} cannot be compared with the baseline: its right/r2 is {value}, "
            assert f"No Δm and no Δp: {why}" in text
    assert summary["delta_m"].notna().to_dict() == {"uw": True, "upgrad": False, "mgda": False}
    assert summary["no_delta_because"].notna().to_dict() == {"uw": False, "upgrad": True, "mgda": True}
    assert abs(summary["delta_m"]["uw"]) < 100


def test_all_outputs_report_a_non_finite_baseline(tmp_path: Path) -> None:
    printed, page, summary = _against([math.nan, math.inf, math.nan], {"uw": 0.6}, tmp_path)
    why = "no run of the method single_task counts (right/r2 is not a finite number)"
    for text in (printed, page):
        assert f"There is no Δm: {why}." in text
    assert summary["no_delta_because"].eq(why).all()


def test_other_metrics_are_compared_without_the_rejected_one(tmp_path: Path) -> None:
    _against([0.02, -0.01, 0.03], {"uw": 0.6}, tmp_path)
    compare(str(tmp_path / "runs"), tmp_path / "out", Settings(metrics=["left/r2"]))
    assert pd.read_csv(tmp_path / "out" / "summary.csv")["delta_m"].notna().all()
