"""The comparison of one experiment, from its records to everything shown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from multitask.evaluation import protocol
from multitask.evaluation.deltas import DELTA_M, DELTA_P, Baseline, find_baseline
from multitask.evaluation.entries import Cost, Entry, add_deltas, costs, macro_table, make_entry
from multitask.evaluation.metrics import compared_metrics, logarithms, with_logarithms
from multitask.evaluation.names import SINGLE_TASK
from multitask.evaluation.records import Records
from multitask.evaluation.statistics import Interval, mean_intervals, mean_ranks, pairs, seeds_needed
from multitask.evaluation.times import times

FRONT_SIZE = 3  # settings of one method from which on they form a front and do not compete


@dataclass(frozen=True)
class Settings:
    """The keys of compare.yaml that select what is compared; they are documented there."""

    split: str = "test"
    metrics: Sequence[str] | None = None
    multiplicative: Sequence[str] | None = None
    selection: str | None = None
    recipe: str = protocol.SHARED
    reference: str = "weighted_sum"
    accept_other_baseline: bool = False
    difference: float = 1.0
    pareto: Sequence[str] | None = None
    targets: Mapping[str, float] | None = None


@dataclass
class Comparison:
    """One experiment compared.

    `metrics`: index task/metric, columns task, metric, higher, log. `entries`: rows that are ranked and tested,
    best first; `fronts`: method → its settings. `pairs`: one row per pair and metric, `headline` the metric to
    look at first. `quoted`: Δ published by others. `times`: one row per run and target, see `times.times`.
    """

    experiment: str
    published: bool
    settings: Settings
    metrics: pd.DataFrame
    entries: list[Entry]
    fronts: dict[str, list[Entry]]
    baseline: Baseline | None
    baseline_means: dict[str, Interval]
    refusal: str
    headline: str
    pairs: pd.DataFrame
    quoted: pd.DataFrame
    set_aside: pd.DataFrame
    counted_runs: pd.DataFrame
    all_labels: list[str]
    cautions: list[str]
    times: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def headline_pairs(self) -> pd.DataFrame:
        """The rows of `pairs` on the metric to look at first."""
        return self.pairs[self.pairs["metric"] == self.headline]

    @property
    def rows(self) -> list[Entry]:
        """The entries and the settings of all fronts."""
        return self.entries + [entry for settings in self.fronts.values() for entry in settings]


def compare_records(records: Records, settings: Settings) -> list[Comparison]:
    """Compare every experiment separately; published results are kept apart from measured ones."""
    runs = records.runs.assign(published=records.runs["source"] != "")
    measured = set(runs[~runs["published"]]["experiment"])
    comparisons: list[Comparison] = []
    for (experiment, published), group in runs.groupby(["experiment", "published"]):
        results = records.results[records.results["run"].isin(group.index)]
        part = compare_experiment(Records(results, group), settings, str(experiment), bool(published))
        if published and experiment in measured:
            comparisons[-1].quoted = part.quoted
            if not part.rows:
                continue
            part.quoted = part.quoted.iloc[:0]
        comparisons.append(part)
    return sorted(comparisons, key=lambda each: not each.rows)  # experiments with only published Δ come last


def compare_experiment(records: Records, settings: Settings, experiment: str, published: bool) -> Comparison:
    """Compare the methods of one experiment."""
    rules = protocol.apply(
        records, split=settings.split, recipe=settings.recipe, selection=settings.selection
    )
    eligible = pd.concat([rules.results, rules.baseline])
    metrics = compared_metrics(eligible, settings.metrics, settings.multiplicative, settings.split)
    only_loss = sorted(set(rules.results["task"]) - set(metrics["task"]))
    results, single = (with_logarithms(table, metrics) for table in (rules.results, rules.baseline))
    labelled = rules.runs
    counted = labelled[labelled.index.isin([*results["run"], *single["run"]])]
    without = labelled[labelled.index.isin(eligible["run"]) & ~labelled.index.isin(counted.index)]

    cost = costs(counted[counted["method"] != SINGLE_TASK], settings.reference)
    attempted = labelled["label"].value_counts()
    trials = labelled.drop_duplicates(["method", "variant", "recipe"])["method"].value_counts()
    entries = [
        make_entry(
            rows,
            metrics,
            cost=cost.get(str(label), Cost()),
            attempted=int(attempted[label]),
            trials=int(trials[rows["method"].iloc[0]]),
        )
        for label, rows in results.groupby("label")
    ]
    directed = metrics[metrics["higher"].notna()]
    baseline, refusal = find_baseline(
        single,
        directed,
        [entry.task_recipes for entry in entries],
        {entry.selection for entry in entries},
        rules.set_aside[rules.set_aside["method"] == SINGLE_TASK]["reason"].tolist(),
    )
    for entry in entries:
        add_deltas(entry, baseline, refusal, directed, settings.accept_other_baseline)

    settings_of: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.label != entry.method:
            settings_of.setdefault(entry.method, []).append(entry)
    fronts = {m: sorted(own, key=_best_first) for m, own in settings_of.items() if len(own) >= FRONT_SIZE}
    in_front = {entry.label for front in fronts.values() for entry in front}
    rivals = [entry for entry in entries if entry.label not in in_front]
    cautions = rules.cautions + _rank(rivals, directed)
    if only_loss and settings.metrics is None:
        cautions.append(f"Not part of any number, since the only metric is the loss: {', '.join(only_loss)}.")
    rivals = sorted(rivals, key=_best_first)
    tested, headline = _pairs(rivals, metrics, settings.difference)
    baseline_means = {}
    if baseline and any(entry.deltas for entry in entries):
        baseline_means = mean_intervals(baseline.values, metrics.loc[baseline.values.columns, "log"])
    comparison = Comparison(
        experiment=experiment,
        published=published,
        settings=settings,
        metrics=metrics,
        entries=rivals,
        fronts=fronts,
        baseline=baseline,
        baseline_means=baseline_means,
        refusal=refusal,
        headline=headline,
        pairs=tested,
        quoted=rules.quoted,
        set_aside=_with_those_without_metric(rules.set_aside, without, list(metrics.index)),
        counted_runs=counted,
        all_labels=sorted(set(labelled["label"]) - set(rules.quoted["label"])),
        cautions=cautions,
    )
    places = {entry.label: place for place, entry in enumerate(comparison.rows)}
    timed = counted[counted["label"].isin(places)]
    timed = timed.sort_values("label", key=lambda names: names.map(places), kind="stable")
    comparison.times = times(timed, metrics, settings.targets or {}, settings.split)
    comparison.cautions += _cautions(comparison)
    return comparison


def _with_those_without_metric(
    set_aside: pd.DataFrame, runs: pd.DataFrame, metrics: list[str]
) -> pd.DataFrame:
    """Set aside the runs without a compared metric, which have values only of others, such as losses."""
    named = ", ".join(metrics[:3]) + (" …" if len(metrics) > 3 else "")
    added = [(run.label, run.seed, run.name, f"no value of {named}") for run in runs.itertuples()]
    return protocol.sorted_table([*set_aside.itertuples(index=False, name=None), *added])


def _rank(entries: list[Entry], directed: pd.DataFrame) -> list[str]:
    means = pd.DataFrame(
        {entry.label: {key: entry.means[key].mean for key in directed.index} for entry in entries}
    ).T.reindex(columns=directed.index)
    ranked = means.dropna()
    if len(ranked) < 2 or directed.empty:
        return []
    ranks = mean_ranks(ranked.astype(float), directed["higher"])
    for entry in entries:
        if entry.label in ranks.index:
            rank, low, high = ranks.loc[entry.label]
            entry.rank = (float(rank), float(low), float(high))
    if unranked := sorted(set(means.index) - set(ranked.index)):
        return [f"Not ranked, since they lack a metric that others have: {', '.join(unranked)}."]
    return []


def _best_first(entry: Entry) -> tuple[float, float, str]:
    delta = entry.delta_m.mean if entry.delta_m else math.inf
    return delta, entry.rank[0] if entry.rank else math.inf, entry.label


def _pairs(entries: list[Entry], metrics: pd.DataFrame, sought: float) -> tuple[pd.DataFrame, str]:
    """Test every pair on Δm, Δp, macro means and every metric; return the tests and the metric to show first."""
    entries = [entry for entry in entries if not entry.source or entry.seeds > 1]
    tables = []
    if sum(entry.deltas is not None for entry in entries) > 1:
        for metric in (DELTA_M, DELTA_P):
            delta = {entry.label: entry.deltas.per_seed[metric] for entry in entries if entry.deltas}
            noise = {entry.label: entry.deltas.noise[metric] for entry in entries if entry.deltas}
            tables.append(pairs(pd.DataFrame(delta), metric=metric, sought=sought, noise=pd.DataFrame(noise)))
    macro = {entry.label: macro_table(entry.values, metrics) for entry in entries}
    directed = metrics[metrics["higher"].notna()]["metric"]
    shared = [name for name in directed.unique() if any(name in table for table in macro.values())]
    values = {f"mean/{name}": {label: table[name] for label, table in macro.items()} for name in shared}
    values |= {key: {entry.label: entry.values[key] for entry in entries} for key in metrics.index}
    for metric, columns in values.items() if len(entries) > 1 else ():
        table = pd.DataFrame(columns)
        log = metric in logarithms(metrics)
        share = math.log1p(sought / 100) if log else abs(float(table.mean().mean())) * sought / 100
        tables.append(pairs(table, metric=metric, sought=share, log=log))
    if not tables:
        return pd.DataFrame(columns=["metric", "a", "b", "p"]), ""
    table = pd.concat(tables, ignore_index=True)
    table["needed"] = seeds_needed(*table[["deviation", "sought", "level"]].to_numpy(dtype=float).T)
    return table, str(tables[0]["metric"].iloc[0])


def _cautions(comparison: Comparison) -> list[str]:
    cautions = [caution for entry in comparison.rows for caution in entry.cautions]
    with_deltas = any(entry.deltas for entry in comparison.rows)
    if with_deltas:
        cautions += [f"No Δm and no Δp: {entry.refusal}." for entry in comparison.rows if entry.refusal]
    if comparison.baseline is not None and with_deltas:
        cautions += comparison.baseline.cautions
    rules = {entry.selection or "not stated" for entry in comparison.rows}
    if len(rules) > 1:
        cautions.append(f"The methods' results were selected by different rules: {', '.join(sorted(rules))}.")
    if len({entry.recipe for entry in comparison.rows}) > 1:
        cautions.append(
            "The methods have different recipes; a difference between them may come from the recipe."
        )
    if absent := sorted(
        set(comparison.all_labels) - {entry.label for entry in comparison.rows} - {SINGLE_TASK}
    ):
        cautions.append(f"Not compared, since none of their runs counts: {', '.join(absent)}.")
    lost = [f"{entry.label} {entry.seeds} of {entry.attempted}" for entry in comparison.entries
            if entry.seeds < entry.attempted and not entry.source]  # fmt: skip
    if lost:
        cautions.append(f"Not every run of a method is averaged: {', '.join(lost)}.")
    directed = comparison.metrics[comparison.metrics["higher"].notna()]
    if with_deltas and (log := list(directed.index[directed["log"]])):
        cautions.append(f"For {', '.join(log)}, Δm and Δp use 100 ln(M/B): −69 is half as much, 69 twice.")
    undirected = comparison.metrics[comparison.metrics["higher"].isna()].index
    if len(undirected):
        cautions.append(
            f"No direction is recorded for {', '.join(undirected)}: neither ranked nor part of Δm."
        )
    for metric, rows in comparison.times.groupby("metric"):
        if unknown := [f"{e.label} {n} of {e.seeds}" for e in comparison.rows
                       if (n := (rows["label"] == e.label).sum()) < e.seeds]:  # fmt: skip
            cautions.append(f"Not every run has a validation of {metric}: {', '.join(unknown)}.")
    reference = comparison.settings.reference
    timed = [entry for entry in comparison.rows if not math.isnan(entry.cost.step_seconds)]
    if timed and not any(entry.method == reference for entry in timed):
        cautions.append(f"No run of {reference} is among the sources, so no cost is relative to it.")
    return list(dict.fromkeys(cautions))
