"""Selects the results that may be averaged, with the reasons for those that may not."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from multitask.evaluation.errors import ComparisonError
from multitask.evaluation.names import DELTAS, SINGLE_TASK
from multitask.evaluation.records import FINISHED, NOT_A_TASK, Records

SHARED = "shared"
PER_METHOD = "per_method"


@dataclass
class Protocol:
    """The results that count, those of the baseline, and the runs that were set aside.

    `results`, `baseline`: the columns of both tables of `Records`, `label` for method and variant, and `key` for
    task/metric. `runs`: all runs, with `label`. `set_aside`: one row per run, with the reason.
    """

    runs: pd.DataFrame
    results: pd.DataFrame
    baseline: pd.DataFrame
    quoted: pd.DataFrame
    set_aside: pd.DataFrame
    cautions: list[str] = field(default_factory=list)


def on_test(selection: str) -> bool:
    """Whether a selection rule looks at the test split."""
    return re.search(r"(?<![a-z])test(?![a-z])", selection.lower()) is not None


def labels(runs: pd.DataFrame) -> pd.Series:
    """Return the name of every run's method, with the variant if the method has several."""
    # A run that failed early may lack its variant, and must not rename the others.
    variants = runs[runs["status"].isin(FINISHED)].groupby("method")["variant"].nunique()
    several = (runs["method"].map(variants).fillna(0) > 1) & (runs["method"] != SINGLE_TASK)
    with_variant = runs["method"] + " (" + runs["variant"] + ")"
    return with_variant.where(several & (runs["variant"] != ""), runs["method"])


def apply(records: Records, *, split: str, recipe: str = SHARED, selection: str | None = None) -> Protocol:
    """Choose the results of one experiment that are comparable.

    Set aside, in this order: runs that did not complete; results selected by another rule than the method's
    most frequent one (or than `selection`); recipes other than the one most methods share (`recipe` may name
    a digest, or be `per_method`); all but the last of repeated runs; and runs with a metric that is not finite.
    """
    runs = records.runs.assign(label=labels(records.runs))
    table = records.results.drop(columns="selection").join(runs.drop(columns="selection"), on="run")
    table["selection"] = records.results["selection"]
    table["key"] = table["task"] + "/" + table["metric"]
    quoted = table[table["metric"].isin(DELTAS)]
    table = table[~table["metric"].isin(DELTAS) & ~table["task"].isin(NOT_A_TASK)]
    remaining = _Remaining(runs, table[table["split"] == split])

    finished = runs.index[runs["status"].isin(FINISHED)]
    remaining.drop_runs(runs.index.difference(finished), _status_reason)
    empty = finished.difference([*remaining.table["run"], *quoted["run"]])
    splits = table.groupby("run")["split"].agg(lambda names: ", ".join(sorted(set(names))))
    remaining.drop_runs(
        empty, lambda run: f"no value for split={split}; available: {splits.get(run.Index, 'none')}"
    )
    _keep_one_selection(remaining, selection)
    _keep_one_recipe(remaining, recipe)
    _keep_last_repeat(remaining)
    broken = remaining.table[~np.isfinite(remaining.table["value"])].drop_duplicates("run").set_index("run")
    remaining.drop_runs(broken.index, lambda run: f"{broken.key[run.Index]} is not a finite number")

    counted = remaining.table.sort_values(["label", "seed", "task", "metric", "run"], kind="stable")
    is_baseline = counted["method"] == SINGLE_TASK
    return Protocol(
        runs=runs,
        results=counted[~is_baseline],
        baseline=counted[is_baseline],
        quoted=quoted.sort_values(["metric", "value", "label"], kind="stable"),
        set_aside=sorted_table(remaining.set_aside),
        cautions=_environment_cautions(runs[runs.index.isin(counted["run"])]),
    )


def sorted_table(set_aside: list[tuple[str, str, str, str]]) -> pd.DataFrame:
    """Return the runs that were set aside as a table: method, seed, run, reason."""
    columns = ["method", "seed", "run", "reason"]
    return pd.DataFrame(set_aside, columns=columns).sort_values(columns, kind="stable", ignore_index=True)


@dataclass
class _Remaining:
    """The results still counted, and the runs that were set aside: label, seed, run, reason."""

    runs: pd.DataFrame
    table: pd.DataFrame
    set_aside: list[tuple[str, str, str, str]] = field(default_factory=list)

    def drop_runs(self, chosen: Iterable[Any], reason: Callable[[Any], str]) -> None:
        """Set runs aside, given their index; `reason` returns a sentence for a run."""
        dropped = self.runs[self.runs.index.isin(list(chosen))]
        self.set_aside += [(run.label, run.seed, run.name, reason(run)) for run in dropped.itertuples()]
        self.table = self.table[~self.table["run"].isin(dropped.index)]


def _status_reason(run: Any) -> str:
    words = {"failed": "failed", "interrupted": "interrupted", "running": "still running, or killed"}
    reason = words.get(run.status, f"status {run.status}")
    return f"{reason}: {run.error.splitlines()[0]}" if run.error.strip() else reason


def _keep_one_selection(remaining: _Remaining, wanted: str | None) -> None:
    table = remaining.table
    if wanted is not None:
        if len(table) and wanted not in set(table["selection"]):
            known = ", ".join(sorted(set(table["selection"]) - {""})) or "none is recorded"
            raise ComparisonError(f"selection={wanted}: nothing was selected by this rule; choices: {known}.")
        keep = table["selection"] == wanted
    else:
        # A baseline's recipe is chosen later; each recipe has its own rule.
        group = table["label"].where(table["method"] != SINGLE_TASK, table["label"] + " " + table["digest"])
        rules = table.groupby(group)["selection"].agg(_usual_selection)
        keep = table["selection"] == group.map(rules)
    remaining.table = table[keep]
    lost = table[~keep & ~table["run"].isin(remaining.table["run"])].drop_duplicates("run")
    rule = lost.set_index("run")["selection"]
    remaining.drop_runs(
        rule.index, lambda run: f"selected by another rule: {rule[run.Index] or 'not stated'}"
    )


def _usual_selection(rules: pd.Series) -> str:
    counts = rules.value_counts()
    return min(counts.index, key=lambda rule: (-counts[rule], on_test(rule), rule))


def _keep_one_recipe(remaining: _Remaining, wanted: str) -> None:
    """Keep one recipe per experiment (or method); the baseline keeps all of its recipes until it is used."""
    methods = remaining.table[remaining.table["method"] != SINGLE_TASK]
    runs = methods.drop_duplicates("run")
    if wanted == PER_METHOD:
        # The most frequent digest; of several, the first by name.
        recipes = runs.groupby("label")["recipe"].agg(lambda digests: digests.mode().iloc[0])
    elif wanted == SHARED:
        by_recipe = runs.groupby("recipe").agg(labels=("label", "nunique"), runs=("run", "nunique"))
        ranked = by_recipe.sort_values(["labels", "runs"], ascending=False, kind="stable").index
        recipes = pd.Series(ranked[0] if len(ranked) else "", index=sorted(set(runs["label"])))
    else:
        known = sorted(set(runs["recipe"]) - {""})
        full = [digest for digest in known if digest.startswith(wanted)]
        if len(full) != 1:
            raise ComparisonError(
                f"recipe={wanted} matches {'no' if not full else 'more than one'} recipe of the runs; "
                f"choices: {', '.join(known) or 'none is recorded'}, {SHARED} and {PER_METHOD}."
            )
        recipes = pd.Series(full[0], index=sorted(set(runs["label"])))
    other = methods["recipe"] != methods["label"].map(recipes)
    remaining.drop_runs(
        methods[other]["run"], lambda run: f"another recipe: {run.recipe or 'no digest is recorded'}"
    )


def _keep_last_repeat(remaining: _Remaining) -> None:
    """Keep the last of several runs of one method, seed, recipe and set of tasks, which would count a seed twice."""
    tasks = remaining.table.groupby("run")["task"].agg(lambda names: "\n".join(sorted(set(names))))
    same = remaining.runs.loc[tasks.index].assign(tasks=tasks).sort_values("name", kind="stable")
    # Rows without a seed are published averages or single runs, and never repeats.
    same = same[same["seed"] != ""]
    repeated = same.duplicated(["label", "variant", "seed", "recipe", "tasks"], keep="last")
    remaining.drop_runs(
        same.index[repeated], lambda run: "repeated: a later run has the same seed and recipe"
    )


def _environment_cautions(runs: pd.DataFrame) -> list[str]:
    cautions = []
    if len(set(runs["versions"]) - {"{}"}) > 1:
        cautions.append("The runs used different package versions (see versions in their run.json).")
    if len(commits := set(runs["commit"]) - {""}) > 1:
        named = ", ".join(sorted(commit[:10] for commit in commits))
        cautions.append(f"The runs used different commits: {named}.")
    return cautions
