"""Prints the tasks and their losses before training: ``python scripts/train.py task_check=true``."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from rich.table import Table
from torch import Tensor, nn

from multitask.errors import ConfigError
from multitask.lightning.module import MultiLossModule
from multitask.lightning.probing import unobtrusive
from multitask.module import MultiTaskModule
from multitask.run.console import summarize
from multitask.run.data import Data, first_batch, temporary_trainer, training_data
from multitask.run.label_checks import check_labels, dtype_of, labelled_share, metric_values
from multitask.run.sharing import compare, losses_of, users
from multitask.task.targets import Binary
from multitask.task.task import Batch, Outcome, Task
from multitask.terminal import table, terminal


def check_tasks(module: MultiLossModule, data: Data) -> None:
    """Print the tasks at initialization, and refuse labels and metrics that do not suit their task.

    For a user's own model, only the losses: its targets, metrics and constant predictors are unknown.
    """
    batch = first_batch(data, "train" if "train" in data.splits else next(iter(data.splits)), module)
    if not isinstance(module, MultiTaskModule):
        with temporary_trainer(module, training_data(data)), unobtrusive(module), torch.enable_grad():
            terminal().print(_of_losses(module, losses_of(module, batch)))
            summarize(module, batch)
        return
    with unobtrusive(module), torch.enable_grad():
        outcomes, losses = compare(module, batch)
        _check_whole_splits(module, data, batch, outcomes)
        for name, outcome in outcomes.items():
            check_that_metrics_move(name, module.by_name[name], outcome)
        terminal().print(_of_tasks(module, data, batch, outcomes, losses))
    summarize(module, batch)


def _check_whole_splits(
    module: MultiTaskModule, data: Data, first: Batch, outcomes: Mapping[str, Outcome]
) -> None:
    """Check the labels of the splits that are not in memory; the others were checked at the start."""
    for split, content in data.splits.items():
        if not isinstance(content, Mapping):
            for batch in data.loader(split):
                predictions: Mapping[str, Tensor] = {name: own.prediction for name, own in outcomes.items()}
                targets = [task.target for task in module.by_name.values()]
                if any(batch[key].shape[1:] != first[key].shape[1:] for key in targets if key in batch):
                    predictions = module.see(batch).predictions  # shapes differ, as for texts
                for name, task in module.by_name.items():
                    check_labels(name, task, predictions[name].detach(), batch, split)


def check_that_metrics_move(name: str, task: Task, outcome: Outcome) -> None:
    """Refuse metrics that are the same for the best possible predictions and for wrong ones."""
    pair = extremes(task, outcome)
    if pair is None:
        return
    right, wrong = (
        metric_values(name, task, *task.shown(replace(outcome, prediction=prediction))) for prediction in pair
    )
    for metric, value in right.items():
        if value == wrong[metric] or (math.isnan(value) and math.isnan(wrong[metric])):
            shares = isinstance(task.loss, nn.CrossEntropyLoss) and outcome.target.is_floating_point()
            classes = f"set tasks.{name}.transform._target_=multitask.targets.Classes"
            way_out = classes if shares else "choose another"
            raise ConfigError(
                f"tasks.{name}.metrics.{metric} is {value:g} whether the predictions are right or wrong: it does not "
                f"suit predictions {list(outcome.prediction.shape)} of targets {list(outcome.target.shape)}; "
                f"{way_out}, or other arguments."
            )


def extremes(task: Task, outcome: Outcome) -> tuple[Tensor, Tensor] | None:
    """Return a right and a wrong prediction in the shape of the head's.

    ``None`` if the targets do not determine them: they are all equal, or have another shape.
    """
    if task.loss_checks_shapes:
        return None
    target, prediction = outcome.target, outcome.prediction.detach()
    known = target if outcome.known is None else target[outcome.known]
    if known.unique().numel() < 2:
        return None
    if not target.is_floating_point():
        classes = prediction.shape[1]
        labels = target.where((target >= 0) & (target < classes), 0)
        scores = [nn.functional.one_hot(t % classes, classes).movedim(-1, 1) for t in (labels, labels + 1)]
        return 20.0 * scores[0] - 10.0, 20.0 * scores[1] - 10.0
    if target.shape != prediction.shape:
        return None
    filled = target.nan_to_num()
    logits = nn.BCEWithLogitsLoss | nn.CrossEntropyLoss
    if isinstance(task.transform, Binary) or isinstance(task.loss, logits):
        return 20.0 * filled - 10.0, 10.0 - 20.0 * filled
    # Right to a thousandth: no real prediction is exact, so a metric that counts exact matches stays constant.
    noise = torch.randn(filled.shape, generator=torch.Generator().manual_seed(0)).to(filled) * known.std()
    return filled + 1e-3 * noise, filled + known.std() + noise


def constant_loss(task: Task, outcome: Outcome) -> float:
    """Return the loss of the best prediction that ignores the input: one number per column or class."""
    shape = outcome.prediction.shape
    start = torch.zeros(shape[1:2] if len(shape) > 2 else shape[1:], dtype=outcome.prediction.dtype)
    candidates = [start]
    if outcome.target.shape == shape:
        known = torch.ones_like(outcome.target, dtype=torch.bool) if outcome.known is None else outcome.known
        values = outcome.target.masked_fill(~known, torch.nan)
        columns = values.movedim(1, -1).flatten(0, -2) if len(shape) > 1 else values
        candidates += [columns.nanmean(0).cpu(), columns.nanmedian(0).values.cpu()]
    candidates = [c.nan_to_num().to(outcome.prediction.device) for c in candidates]

    def loss(constant: Tensor) -> Tensor:
        spread = constant.view(-1, *[1] * (len(shape) - 2)) if len(shape) > 2 else constant
        return task.compare(spread.expand(shape), outcome.target, outcome.known).loss

    best = min(candidates, key=lambda c: float(loss(c)))
    lowest = float(loss(best))
    found = best.clone().requires_grad_()
    search = torch.optim.LBFGS([found], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        value = loss(found)
        if value.requires_grad:
            value.backward()
        return value

    search.step(closure)
    reached = float(loss(found.detach()))
    return min(lowest, reached) if math.isfinite(reached) else lowest


def _of_tasks(
    module: MultiTaskModule,
    data: Data,
    batch: Batch,
    outcomes: Mapping[str, Outcome],
    losses: Mapping[str, Tensor],
) -> Table:
    shown = table(
        "tasks at initialization",
        ("task", "target", "shape", "type"),
        ("labelled", "loss", "constant", "gradient"),
    )
    shown.caption = (
        f"On {module.examples(batch):.0f} training examples: the loss, that of the best constant predictor, and the "
        "norm of its gradient with respect to the trunk."
    )
    shared = [p for p in module.trunk.parameters() if p.requires_grad]
    whole = data.splits.get("train")
    for name, loss in losses.items():
        norm = _norm(loss, shared)
        if name in outcomes:
            task, target = module.by_name[name], batch[module.by_name[name].target]
            share = labelled_share(task, dict(whole) if isinstance(whole, Mapping) else batch)
            cells = [
                task.target,
                "×".join(["n", *map(str, target.shape[1:])]),
                dtype_of(target),
                "" if share is None else f"{100 * share:.1f} %",
                f"{loss.item():.4g}",
                f"{constant_loss(task, outcomes[name]):.4g}",
            ]
        else:
            cells = ["parameters", "", "", "", f"{loss.item():.4g}", ""]
        shown.add_row(name, *cells, f"{norm:.4g}")
    return shown


def _norm(loss: Tensor, parameters: list[nn.Parameter]) -> float:
    """Return the norm of a loss's gradient."""
    if not parameters or not loss.requires_grad:
        return 0.0
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(float(g.double().square().sum()) for g in found if g is not None))


def _of_losses(module: MultiLossModule, losses: Mapping[str, Tensor]) -> Table:
    shown = table("losses at initialization", ["name"], ("loss", "gradient"))
    shown.caption = (
        "On one training batch: the loss, and the norm of its gradient with respect to the shared parameters."
    )
    named = [p for n, p in module.named_parameters() if p.requires_grad and not n.startswith("weighting.")]
    shared = [p for p, its in zip(named, users(dict(losses), named), strict=True) if len(its) > 1]
    for name, loss in losses.items():
        shown.add_row(name, f"{loss.item():.4g}", f"{_norm(loss, shared):.4g}")
    return shown
