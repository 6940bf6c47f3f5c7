"""Checks of the names of tasks and metrics, without importing torch."""

import keyword
import re
from collections.abc import Iterable, Mapping
from typing import Any

from multitask.errors import ConfigError
from multitask.evaluation.names import METRICS, TASKS, renamed

# Attributes of torch.nn.ModuleDict, which holds the tasks, and of torchmetrics.MetricCollection, which holds a
# task's metrics: neither takes an item of such a name. A test compares both with the installed versions.
_OF_MODULES = """
T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double
dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu
items keys load_state_dict modules mtia named_buffers named_children named_modules named_parameters
parameters pop register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to
to_empty train training type update values xpu zero_grad
"""
_OF_COLLECTIONS = (
    "add_metrics clone compute compute_groups metric_state persistent plot postfix prefix reset set_dtype"
)
OF_MODULES = frozenset(_OF_MODULES.split())
OF_COLLECTIONS = OF_MODULES | frozenset(_OF_COLLECTIONS.split())
_UNDERSCORE = "names with a leading underscore are reserved for torch"


def check_names(tasks: Mapping[str, Any]) -> None:
    """Refuse names of tasks and metrics that have another meaning in the module, the logs or the record."""
    for name, task in tasks.items():
        if why := _of_task(str(name)):
            raise ConfigError(
                f"tasks.{name} cannot be the name of a task: {why}; rename it where its file says "
                f"# @package tasks.{name}, for example tasks.{renamed(str(name), 'task')}."
            )
        metrics = task.get("metrics") if isinstance(task, Mapping) else None
        for metric in metrics or ():
            if why := _of_metric(str(metric)):
                raise ConfigError(
                    f"tasks.{name}.metrics.{metric} cannot be the name of a metric: {why}; rename it, for example "
                    f"{renamed(str(metric), 'metric')}."
                )


def check_losses(losses: Iterable[str]) -> None:
    """Refuse names of losses that have another meaning in the logs or the record."""
    for name in losses:
        why = TASKS.get(name)
        if not re.fullmatch(r"[\w.+-]+", str(name)):
            why = "it has to be a word without a slash"
        if why:
            raise ConfigError(f"model: losses(batch) names a loss '{name}', and {why}; rename it there.")


def _of_task(name: str) -> str | None:
    reasons = {
        "it has to be a Python identifier": not name.isidentifier() or keyword.iskeyword(name),
        "a dict has a method of this name": hasattr(dict, name),
        "a torch module has an attribute of this name": name in OF_MODULES,
        _UNDERSCORE: name.startswith("_"),
        "the seed of the trunk's initial values is derived from this name": name == "trunk",
    }
    return next((reason for reason, applies in reasons.items() if applies), TASKS.get(name))


def _of_metric(name: str) -> str | None:
    reasons = {
        "it has to be a word without a dot": not name or "." in name,
        "a torchmetrics collection has an attribute of this name": name in OF_COLLECTIONS,
        _UNDERSCORE: name.startswith("_"),
    }
    return next((reason for reason, applies in reasons.items() if applies), METRICS.get(name))
