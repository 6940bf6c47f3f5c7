"""Compares the runs of the sources; writes tables, plots and the page."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from multitask.evaluation import page, tables, terminal
from multitask.evaluation.comparison import Comparison, Settings, compare_records
from multitask.evaluation.curves import read_curves
from multitask.evaluation.errors import ComparisonError
from multitask.evaluation.names import SINGLE_TASK
from multitask.evaluation.plots.all import CAPTIONS, Plot, draw
from multitask.evaluation.records import RECORDED, Records, read
from multitask.evaluation.sources import Sources, find


def load(source: str | Iterable[str], baselines: str | None = None) -> Records:
    """Read the sources, and `<baselines>/<experiment>.csv` for every experiment in them that has one."""
    sources = find(source)
    records = read(sources)
    if baselines is None:
        return records
    files = [Path(baselines) / f"{name}.csv" for name in sorted(set(records.runs["experiment"]))]
    already = {path.resolve() for path in sources.record_files}
    added = [path for path in files if path.is_file() and path.resolve() not in already]
    return _once(read(Sources(sources.run_folders, (*sources.record_files, *added)))) if added else records


def _once(records: Records) -> Records:
    """Drop rows of a baseline's file whose run folders are among the sources."""
    runs = records.runs
    key = runs["experiment"] + "\n" + runs["sweep"] + "\n" + runs["name"].map(lambda name: Path(name).name)
    recorded = runs["status"] == RECORDED
    copied = recorded & (runs["method"] == SINGLE_TASK) & key.isin(set(key[~recorded]))
    return Records(records.results[~records.results["run"].isin(runs.index[copied])], runs[~copied])


def compare(
    source: str | Iterable[str],
    output: str | Path,
    settings: Settings | None = None,
    baselines: str | None = None,
    console: Console | None = None,
) -> list[Comparison]:
    """Compare, print, and write summary.csv, means.csv, pairs.csv, …, ``plots/*.png`` and index.html."""
    comparisons = compare_records(load(source, baselines), settings or Settings())
    if not any(comparison.rows or len(comparison.quoted) for comparison in comparisons):
        reasons = {row.reason for comparison in comparisons for row in comparison.set_aside.itertuples()}
        why = f" ({'; '.join(sorted(reasons))})" if reasons else ""
        raise ComparisonError(f"source={source} contains no results to compare{why}; give finished runs.")
    folder = Path(output)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for name in CAPTIONS:  # files of an earlier comparison
        for path in (folder / "plots").glob(f"*_{name}.png"):
            path.unlink()
    drawn: list[list[Plot]] = []
    for slug, comparison in zip(page.slugs(comparisons), comparisons, strict=True):
        drawn.append(draw(comparison, read_curves(comparison.counted_runs)))
        for plot in drawn[-1]:
            (folder / "plots" / f"{slug}_{plot.name}.png").write_bytes(plot.png)
    tables.write(comparisons, folder)
    (folder / "index.html").write_text(page.render(comparisons, drawn), encoding="utf-8", newline="\n")
    if console is not None:
        terminal.show(comparisons, console)
        console.print(Text(f"\nTables, plots and the page index.html are in {folder}."))
    return comparisons
