"""One self-contained HTML page with tables, plots and style, without scripts or network access."""

import base64
import itertools
import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from multitask.evaluation import wording
from multitask.evaluation.comparison import Comparison
from multitask.evaluation.deltas import DELTA_P
from multitask.evaluation.metrics import logarithms
from multitask.evaluation.names import DELTAS
from multitask.evaluation.plane import plane
from multitask.evaluation.plots.all import Plot
from multitask.evaluation.wording import NOTHING, amount, arrow, number

Row = dict[str, object]


def slugs(comparisons: list[Comparison]) -> list[str]:
    """Return the name of each comparison in file names and links, unique even if case is ignored."""
    found: list[str] = []
    for comparison in comparisons:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", comparison.experiment).strip("-") or "experiment"
        name += "-published" if comparison.published else ""
        taken = {each.lower() for each in found}
        numbered = (name if n == 1 else f"{name}-{n}" for n in itertools.count(1))
        found.append(next(each for each in numbered if each.lower() not in taken))
    return found


def render(comparisons: list[Comparison], drawn: list[list[Plot]]) -> str:
    """Return the page; `drawn` contains the plots of each comparison."""
    sections = map(_section, slugs(comparisons), comparisons, drawn)
    return _template().render(sections=list(sections))


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("multitask.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": wording.percent,
        "metric": wording.metric,
        "ratio": wording.ratio,
        "arrow": arrow,
        "number": number,
    }
    return environment.get_template("page.html.jinja")


def _section(slug: str, comparison: Comparison, plots: list[Plot]) -> Row:
    return {
        "slug": slug,
        "comparison": comparison,
        "digits": wording.column_digits(comparison),
        "findings": wording.findings(comparison),
        "macro": list(dict.fromkeys(name for entry in comparison.rows for name in entry.macro)),
        "plots": {plot.name: {"src": _data_url(plot), "caption": plot.caption} for plot in plots},
        "matrix": _matrix(comparison),
        "matrix_of": wording.metric_name(comparison.headline),
        "pairs": [wording.pair_cells(pair) for _, pair in comparison.headline_pairs.iterrows()],
        "ratios": comparison.headline in logarithms(comparison.metrics),
        "hypervolumes": wording.hypervolumes(plane(comparison)),
        "times": wording.times(comparison),
        "protocol": _protocol(comparison),
    }


def _data_url(plot: Plot) -> str:
    return f"data:image/png;base64,{base64.b64encode(plot.png).decode('ascii')}"


def _matrix(comparison: Comparison) -> list[tuple[str, list[dict[str, str]]]]:
    """Return row minus column, or row over column, for every pair, best first; empty if there is only one pair.

    The `tone` of a cell is better, worse, same (not separable) or none.
    """
    table = comparison.headline_pairs
    names = [entry.label for entry in comparison.entries if entry.label in set(table["a"]) | set(table["b"])]
    if len(names) < 3:
        return []
    higher_is_better = _higher(comparison)
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for _, row in table.iterrows():
        for a, b, sign in ((row["a"], row["b"], 1), (row["b"], row["a"], -1)):
            difference = sign * row["difference"]
            tone = "same"
            if row["separable"]:
                tone = "better" if (difference > 0) == higher_is_better else "worse"
            title = f"{wording.names(a, b, row['scale'])}: {wording.verdict(row)}"
            cells[a, b] = {"text": amount(row, difference), "tone": tone, "title": title}
    none = {"text": "", "tone": "none", "title": ""}
    return [(a, [cells.get((a, b), none) for b in names]) for a in names]


def _higher(comparison: Comparison) -> bool:
    headline, metrics = comparison.headline, comparison.metrics
    if headline in DELTAS:
        return headline == DELTA_P
    name = headline.removeprefix("mean/")
    found = metrics[metrics["metric"] == name] if headline.startswith("mean/") else metrics.loc[[headline]]
    return bool(found["higher"].iloc[0])


def _protocol(comparison: Comparison) -> list[tuple[str, str]]:
    settings = comparison.settings
    recipes = sorted({entry.recipe[:12] or "not recorded" for entry in comparison.rows})
    baseline = comparison.baseline
    alone = f"none: {comparison.refusal}"
    if baseline is not None:
        compared = [entry for entry in comparison.rows if entry.deltas]
        recipe = "the same recipe, task by task" if compared else "another recipe, not used"
        if any("another recipe" in caution for entry in compared for caution in entry.cautions):
            recipe = "another recipe"
        alone = f"{len(baseline.values)} seeds, with {recipe}"
    return [
        ("Split", settings.split),
        ("Recipe", ", ".join(recipes) or NOTHING),
        ("Single-task baseline", alone),
        ("Runs averaged", str(len(comparison.counted_runs))),
        ("Runs not averaged", str(len(comparison.set_aside))),
    ]
