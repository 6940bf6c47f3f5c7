"""Initial values, the widths of lazy layers, and transforms fitted to the training targets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from multitask.data.base import Split
from multitask.data.batches import few_of, picked, tensors_of
from multitask.errors import ConfigError, on_one_line
from multitask.lightning.probing import unobtrusive
from multitask.module import MultiTaskModule, call_with_inputs, inputs_of
from multitask.nn.with_losses import WithLosses
from multitask.randomness import derived_seed
from multitask.run.data import Data, batches_in, in_memory
from multitask.run.label_checks import check_labels, check_metrics, check_splits, check_units, dtype_of
from multitask.run.loss_checks import check_loss, check_partly, check_term
from multitask.run.loss_examples import labelled_sample
from multitask.run.model_choice import TRUNK_AND_HEADS, is_own
from multitask.run.resolvers import plain
from multitask.task.derived import Derivative
from multitask.task.penalty import Penalty
from multitask.task.seen import Seen, split_features
from multitask.task.targets import Transform
from multitask.task.task import Batch, Task


def seeded(seed: int, name: str, make: Callable[[], Any]) -> Any:
    """Call ``make`` with random numbers that depend only on seed and name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("initial", name, seed))
        return make()


def make_model(config: DictConfig) -> Any:
    """Instantiate the model; the initial values of each part depend on the seed and the part's name alone."""

    def made(name: str, node: Any) -> Any:
        return seeded(config.seed, name, partial(instantiate, node, _convert_="all"))

    if is_own(config):
        return made("model", config.model)
    trunk = made("trunk", config.trunk)
    tasks = {name: made(name, node) for name, node in config.tasks.items()}
    model = plain(config.model) if "model" in config else {"_target_": TRUNK_AND_HEADS}
    # Trunk and tasks are not passed through instantiate: Hydra would copy them.
    return instantiate(model, _partial_=True, _convert_="all")(trunk=trunk, tasks=tasks)


def fit_targets(tasks: Mapping[str, Task], data: Data, most: int | None = None) -> None:
    """Fit scalings and class weights in one pass over the training targets.

    Of a stream without a length, ``most`` batches are taken, or all if it is ``None``.
    """
    wanting = {name: task for name, task in tasks.items() if task.fitted}
    if not wanting:
        return
    if "train" not in data.splits:
        raise ConfigError(
            f"tasks.{next(iter(wanting))} is fitted to the training split, and the data has none."
        )
    loader = data.loader("train")
    for batch in loader if batches_in(loader) is not None else islice(loader, most):
        for name, task in wanting.items():
            _check_target(name, task, batch)
            task.observe(batch)
    for name, task in wanting.items():
        for part in task.fitted:
            try:
                part.finish()
            except ValueError as error:
                raise ConfigError(f"tasks.{name}: {error}.") from error


def _check_target(name: str, task: Task, batch: Batch) -> None:
    if task.target not in batch:
        raise ConfigError(f"tasks.{name}.target={task.target} is not in the data; it has {', '.join(batch)}.")


def batches_of_run(config: DictConfig) -> int | None:
    """Return how many batches of a stream make an epoch, or a run without epochs; ``None`` for all."""
    trainer = config.trainer
    if isinstance(trainer.limit_train_batches, int):
        return int(trainer.limit_train_batches)
    if trainer.max_steps > 0 and trainer.max_epochs in (-1, None):
        return int(trainer.max_steps * trainer.accumulate_grad_batches)
    return None  # the run ends only if an epoch does


def initialize(module: MultiTaskModule, batch: Batch, seed: int, splits: Mapping[str, Split | None]) -> None:
    """Run a few examples through every part, so that lazy layers take their widths and errors show.

    ``batch`` is one of the first split; the splits in memory are checked in full.
    """
    few, memory = few_of(batch), in_memory(splits)
    with unobtrusive(module), torch.set_grad_enabled(module.derivatives):
        _widths(module, few, seed)
        _check_inputs(module, memory)
        seen = module.see(few)
        for name, task in module.by_name.items():
            _check(name, task, seen, memory, batch, "train" if "train" in splits else next(iter(splits)))
            check_units(name, task, module.by_name)
        for name, term in module.terms.items():
            # More examples are more likely to contain pairs and labels.
            check_term(name, term, module, few_of(batch, 32), partial(seeded, seed, name))
    named = list(module.named_parameters())
    for name, part in module.tasks.items():
        if isinstance(part, Penalty):
            try:
                part.chosen(named)  # refuses a pattern that matches no parameter
            except ValueError as error:
                raise ConfigError(f"tasks.{name}.{error}.") from error


def _widths(module: MultiTaskModule, few: Batch, seed: int) -> None:
    """Materialize the lazy layers of trunk and heads, each part with a seed of its own."""
    try:
        output = seeded(seed, "trunk", lambda: call_with_inputs(module.trunk, few, module.inputs))
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise ConfigError(_misfit(inputs_of(few, module.inputs), error)) from error
    heads = {name: task for name, task in module.by_name.items() if task.head is not None}
    features = split_features(_features(output), list(heads))
    for (name, task), own in zip(heads.items(), features, strict=True):
        with _naming(name):
            seeded(seed, name, partial(task.predict, own))


def _features(output: Any) -> Any:
    return output.features if isinstance(output, WithLosses) else output


def _check(name: str, task: Task, seen: Seen, memory: Mapping[str, Batch], batch: Batch, split: str) -> None:
    """Refuse a task whose settings, labels, loss or metrics do not match the data."""
    few = seen.batch
    _check_target(name, task, few)
    if not task.missing and f"mask/{task.target}" in few:
        raise ConfigError(
            f"tasks.{name}: the data has mask/{task.target}, which marks the labelled part of the target; set "
            f"tasks.{name}.missing=true, or remove the mask."
        )
    if isinstance(task.prediction, Derivative) and type(task.transform) is not Transform:
        raise ConfigError(
            f"tasks.{name}.transform changes the target's units, and a derivative has those of the inputs and of "
            f"tasks.{task.prediction.task}; leave transform out."
        )
    with _naming(name):
        prediction = seen.predictions[name].detach()
    with _naming(name), torch.no_grad():
        check_splits(name, task, prediction, memory)
        check_labels(name, task, prediction, few, split)
        outcome = task.outcome(prediction, few)
    with torch.no_grad():
        outcome = labelled_sample(task, outcome, memory)
        check_loss(name, task, outcome, memory, batch)
        check_metrics(name, task, outcome)
        check_partly(name, task, outcome, few, memory)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Raise errors of the body as a ConfigError that names the task."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        message = str(error) if str(error).startswith(f"tasks.{name}") else f"tasks.{name}: {error}"
        raise ConfigError(f"{message.removesuffix('.')}{_derivatives(error) or '.'}") from error


def _misfit(inputs: Any, error: Exception) -> str:
    reason = f"{on_one_line(error)}{_derivatives(error)}"
    if not isinstance(inputs, Tensor):
        keys = f" of {', '.join(map(str, inputs))}" if isinstance(inputs, Mapping) else ""
        return f"trunk cannot take a {type(inputs).__name__}{keys} for its inputs: {type(error).__name__}: {reason}"
    hint = "" if inputs.is_floating_point() else "; all layers but embeddings want floats"
    shape = list(inputs.shape[1:])
    return f"trunk cannot take inputs of shape {shape} and type {dtype_of(inputs)}{hint}: {reason}"


def _derivatives(error: Exception) -> str:
    """Return advice for a part that differentiates its outputs: no graph is recorded here, nor in validation."""
    return "; take derivatives inside torch.enable_grad()." if "does not require grad" in str(error) else ""


def check_batch(batch: Any, inputs: str | Sequence[str]) -> None:
    """Refuse batches that are not mappings or lack the inputs."""
    if not isinstance(batch, Mapping):
        raise ConfigError(
            f"data gives a {type(batch).__name__} for a batch, and trunk and heads look for inputs and targets by "
            "name; give each example as a mapping, set data.collate_fn, or use your own model (docs/own_models.md)."
        )
    for key in [inputs] if isinstance(inputs, str) else inputs:
        if key not in batch:
            raise ConfigError(
                f"data has {', '.join(map(str, batch)) or 'nothing'}, and no '{key}'; set model.inputs to the key, or "
                "the keys, of the trunk's inputs."
            )


def _check_inputs(module: MultiTaskModule, splits: Mapping[str, Batch]) -> None:
    """Refuse NaN or infinite inputs, unless the trunk gives finite features for them."""
    for split, arrays in splits.items():
        given = [t for t in tensors_of(inputs_of(arrays, module.inputs)) if t.is_floating_point()]
        if not given:
            continue
        wrong = torch.stack([~t.flatten(1).isfinite().all(1) for t in given]).any(0)
        if not wrong.any():
            continue
        some = picked(arrays, wrong.nonzero().flatten()[:8])
        features = _features(call_with_inputs(module.trunk, some, module.inputs))
        found = features.values() if isinstance(features, Mapping) else [features]
        if not all(isinstance(one, Tensor) and one.isfinite().all() for one in found):
            raise ConfigError(
                f"data: the inputs of {int(wrong.sum())} of {len(wrong)} examples of the {split} split are NaN or "
                "infinite; fix the data, or leave these examples out."
            )
