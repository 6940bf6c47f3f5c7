"""scripts/benchmark.py on small configurations: complete tables, and exact gradients of all methods."""

import csv
import json
import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from multitask.benchmark import problems
from multitask.benchmark.cells import COLUMNS
from multitask.benchmark.methods import (
    AutogramRecipe,
    Autojac,
    Naive,
    Ours,
    WeightedSum,
    accumulated_methods,
    compiled_methods,
    text_methods,
)
from multitask.benchmark.problems import TEXTS, TRUNKS, make
from multitask.benchmark.reference import Reference
from multitask.benchmark.run import run
from multitask.benchmark.timing import Effort, interleaved, peak_mib
from multitask.errors import ConfigError
from multitask.run.resolvers import register
from tests.integration.script_runner import ROOT, Scripts

UPGRAD = {
    "_target_": "torchjd.aggregation.UPGradWeighting",
    "pref_vector": None,
    "projector": {"_target_": "multitask.weighting.projection.ExactProjector"},
}
# float32 against float64, relative to the largest gradient.
ROUNDING = 1e-4
BRIEF = ["seconds=0", "rounds=1"]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "benchmark.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_exact(found: list[dict[str, str]]) -> None:
    for row in found:
        assert 0.0 <= float(row["max_error"]) < ROUNDING, row
        assert float(row["ms"]) > 0, row
        assert float(row["ratio"]) > 0, row
        assert float(row["peak_mib"]) > 0, row


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Scripts:
    return Scripts(tmp_path_factory.mktemp("benchmark"))


@pytest.mark.smoke
@pytest.mark.slow
def test_all_requested_cells_are_measured(scripts: Scripts, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- table: made by scripts/benchmark.py -->\nold\n<!-- end of table -->\nafter\n"
    )
    ran = scripts.run(
        *BRIEF, "cases=[step,instance_wise,solver,framework]", "trunks=[mlp,lenet]", "tasks=[3]", "instances=[8]",
        "solver_tasks=[2,8]", "framework_tasks=[2]", f"output={tmp_path / 'out'}", f"page={page}", script="benchmark",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found = rows(tmp_path / "out")
    assert tuple(found[0]) == COLUMNS
    methods = ["weighted_sum", "ours", "torchjd_autojac", "torchjd_autogram", "naive"]
    wanted = [("step", trunk, m, method) for trunk in ("mlp", "lenet") for m in "3" for method in methods]
    wanted += [
        ("instance_wise", "mlp", "2", method) for method in ("weighted_sum", "ours", "torchjd_autogram")
    ]
    for conflicts in ("few", "many"):
        wanted += [
            (f"solver_{conflicts}_conflicts", "", m, method) for m in "28" for method in ("torchjd", "ours")
        ]
    wanted += [("framework", "lenet", "2", method) for method in ("loop", "ours")]
    assert [(row["case"], row["trunk"], row["tasks"], row["method"]) for row in found] == wanted
    assert_exact(found)
    assert all(
        float(row["ratio"]) == 1.0 for row in found if row["method"] in ("weighted_sum", "torchjd", "loop")
    )
    known = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert known["threads"] == 1
    assert known["torch"] == torch.__version__
    text = page.read_text()
    assert text.startswith("before\n<!-- table")
    assert text.endswith("<!-- end of table -->\nafter\n")
    assert "old" not in text
    assert known["date"] in text
    assert text.count("| mlp | 3 | 128 |") == 1


def test_tables_and_plot_from_existing_measurements(scripts: Scripts, tmp_path: Path) -> None:
    """Existing measurements are plotted without measuring again."""
    lines = [",".join(COLUMNS)]
    for case, m, batch in [
        ("scaling_tasks", 2, 128),
        ("scaling_tasks", 8, 128),
        ("scaling_width_64", 8, 128),
    ]:
        lines += [f"{case},mlp,{m},{batch},{method},1.5,2.5,3,1e-7" for method in ("weighted_sum", "ours")]
    lines += ["text,lora,4,8,weighted_sum,1.0,2.5,6.5,1e-7", "text,lora,4,8,ours,2.4,6.0,7.5,1e-7"]
    (tmp_path / "benchmark.csv").write_text("\n".join(lines) + "\n")
    facts = dict.fromkeys(("date", "commit", "processor", "cores", "threads", "torch", "torchjd"), "x")
    (tmp_path / "benchmark.json").write_text(json.dumps(facts))
    ran = scripts.run(f"source={tmp_path}", f"output={tmp_path}", script="benchmark")
    assert ran.code == 0, ran.err
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "table.md").read_text()
    assert "| mlp/64 | 8 | 128 |" in table
    assert table.count("| mlp |") == 2
    assert (
        "| lora | 4 | 8 | 2.5 | 1.00 | 2.40 | 0.80 | 7.5 | 6.5 | 1e-07 |" in table
    )  # relative to three passes


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trunks=[vgg]", "trunks names vgg"),
        ("cases=[steps]", "did you mean 'step'"),
        ("tasks=[1]", "at least 2"),
        ("weighting=mgda", "leave weighting=upgrad"),
        ("source=/nowhere", "source=/nowhere has no benchmark.csv"),
    ],
)
def test_invalid_config_is_rejected(argument: str, message: str) -> None:
    register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("benchmark", [argument])
    with pytest.raises(ConfigError, match=re.escape(message)):
        run(config)


@pytest.mark.smoke("mlp", "lenet")
@pytest.mark.slow
@pytest.mark.parametrize("trunk", TRUNKS)
def test_all_methods_agree_with_float64_rows(trunk: str) -> None:
    problem = make(trunk, 3, batch=4)
    reference = Reference(problem)
    made = [
        WeightedSum(problem.copy()),
        Ours(problem.copy(), UPGRAD),
        Autojac(problem.copy(), 1, True),
        Autojac(problem.copy(), None, False),
        AutogramRecipe(problem.copy()),
        Naive(problem.copy()),
    ]
    for method in made:
        method.step()
        assert reference.error(method.problem, method.meaning) < 1e-3, type(method).__name__
        for parameter in method.problem.shared:
            parameter.grad *= 1.01  # type: ignore[operator]
        assert reference.error(method.problem, method.meaning) > 1e-3, "an error must show"


@pytest.mark.parametrize("trunk", ["mlp", "transformer"])
def test_micro_batches_agree_with_float64_rows(trunk: str) -> None:
    problem = make(trunk, 3, batch=8)
    reference = Reference(problem)
    for name, settings in accumulated_methods(UPGRAD).items():
        for setting in settings:
            method = setting(problem.copy())
            method.step()
            assert reference.error(method.problem, method.meaning) < ROUNDING, (name, setting)


def test_compiled_trunk_agrees_with_float64_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    # Skip the slow generation of machine code.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    problem = make("mlp", 3, batch=4, width=32)
    reference = Reference(problem)
    for name, (of_name,) in compiled_methods(UPGRAD).items():
        method = of_name(problem.copy())
        method.step()
        assert reference.error(method.problem, method.meaning) < ROUNDING, name


@pytest.mark.parametrize("trunk", TEXTS)
def test_text_agrees_with_float64_rows(trunk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    monkeypatch.setattr(problems, "_ENCODER", problems._ENCODER | small)
    problem = make(trunk, 2, batch=2)
    assert all("lora" in name for name, p in problem.trunk.named_parameters() if p.requires_grad) == (
        trunk == "lora"
    )
    reference = Reference(problem)
    for name, (of_name,) in text_methods(UPGRAD).items():
        method = of_name(problem.copy())
        method.step()
        assert reference.error(method.problem, method.meaning) < ROUNDING, name


@pytest.mark.gpu
def test_gpu_prints_the_same_tables(scripts: Scripts, tmp_path: Path) -> None:
    ran = scripts.run(
        *BRIEF, "cases=[step,instance_wise,solver,framework]", "trunks=[mlp]", "tasks=[3]", "instances=[8]",
        "solver_tasks=[2,40]", "framework_tasks=[2]", "device=cuda", f"output={tmp_path}", script="benchmark",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert len(rows(tmp_path)) == 5 + 3 + 8 + 2
    assert_exact([row for row in rows(tmp_path) if row["case"] != "framework"])  # its convolutions use TF32


def test_instance_wise_methods_agree_with_float64_rows() -> None:
    problem = make("mlp", 2, batch=4, width=32)
    reference = Reference(problem, by_example=True)
    for method in [
        WeightedSum(problem.copy()),
        Ours(problem.copy(), UPGRAD, rows="example"),
        AutogramRecipe(problem.copy(), batch_dim=0),
    ]:
        method.step()
        assert reference.error(method.problem, method.meaning) < ROUNDING, type(method).__name__


def test_peak_memory_is_that_of_the_step() -> None:
    held: list[torch.Tensor] = []
    assert peak_mib(lambda: held.append(torch.ones(2**18))) == pytest.approx(1.0, abs=0.01)
    assert peak_mib(lambda: (torch.ones(2**18), None)[1]) == pytest.approx(1.0, abs=0.01)


def test_fastest_setting_is_reported() -> None:
    def spend(count: int) -> None:
        sum(range(count))

    found = interleaved({"a": [lambda: spend(400_000), lambda: spend(1_000)]}, Effort(0.0, 3))
    seconds, best = found["a"]
    assert best == 1
    assert math.isfinite(seconds)


def test_docs_contain_the_markers_of_the_table() -> None:
    text = (ROOT / "docs" / "benchmark.md").read_text()
    assert text.index("<!-- table: made by scripts/benchmark.py -->") < text.index("<!-- end of table -->")
