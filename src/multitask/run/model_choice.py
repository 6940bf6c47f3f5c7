"""Whether the model is trunk and heads or a user's own module, and checks of keys that only the former has."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from multitask.errors import ConfigError

TRUNK_AND_HEADS = "multitask.module.MultiTaskModule"
_GROUP = "trunk_and_heads"
# Overrides that choose or change a trunk or tasks.
_OF_TRUNK_AND_HEADS = re.compile(r"~?\+{0,2}(trunk|task|tasks)(?=[.=@]|$)")
_NOTHING = re.compile(r"trunk=none|task=\[\]")


def target_of(config: DictConfig) -> str:
    """Return the class of the model; configs older than the group ``model`` have trunk and heads."""
    return str(OmegaConf.select(config, "model._target_") or TRUNK_AND_HEADS)


def is_own(config: DictConfig) -> bool:
    """Return whether the model is a user's own module, without trunk and tasks; refuse other classes."""
    target = target_of(config)
    if target == TRUNK_AND_HEADS:
        return False
    from multitask.lightning.module import MultiLossModule  # deferred: it imports torch
    from multitask.module import MultiTaskModule
    from multitask.run.targets import imported

    made = imported("model._target_", target)
    if isinstance(made, type) and not issubclass(made, MultiLossModule):
        raise ConfigError(
            f"model._target_={target} is no multitask.MultiLossModule; derive it from that class and define "
            "losses(batch) -> {name: loss}."
        )
    return not (isinstance(made, type) and issubclass(made, MultiTaskModule))


def check_choices(config: DictConfig) -> None:
    """Refuse trunk, tasks and keys that refer to tasks if the model is a user's own."""
    target = target_of(config)
    for given in _of_trunk_and_heads(config):
        raise ConfigError(
            f"{given} belongs to a model of trunk and heads, and model._target_={target} has neither; leave it out, or "
            "choose trunk=none task=[]."
        )
    baseline = OmegaConf.select(config, "hydra.runtime.choices.baseline")
    if config.get("only") is not None or baseline not in (None, "none"):
        raise ConfigError(
            f"only and baseline=single_task choose among tasks, and model._target_={target} has losses of its own; "
            "leave both out."
        )
    if config.compile:
        raise ConfigError(
            f"compile=true compiles the trunk, and model._target_={target} has none; set compile=false, and call "
            "torch.compile on a part of it in its constructor."
        )


def _of_trunk_and_heads(config: DictConfig) -> Iterator[str]:
    """Yield the overrides, and the choices of an experiment, that set a trunk or tasks."""
    for override in OmegaConf.select(config, "hydra.overrides.task") or []:
        if _OF_TRUNK_AND_HEADS.match(override) and not _NOTHING.fullmatch(override):
            yield override
    usual = _script_defaults(config)
    trunk = OmegaConf.select(config, "hydra.runtime.choices.trunk")
    if trunk not in (None, "none", usual.get("trunk")):
        yield f"trunk={trunk}"
    if config.get("tasks") and list(config.tasks) != [n.rpartition("/")[2] for n in usual.get("task", ())]:
        yield f"tasks.{next(iter(config.tasks))}"


def leave_out_trunk_and_tasks(config: DictConfig) -> None:
    """Remove trunk and tasks from the config, and the default model's ``inputs``."""
    hydra: Any = config.get("hydra") or (HydraConfig.get() if HydraConfig.initialized() else None)
    default = hydra is not None and hydra.runtime.choices.get("model") == _GROUP
    with open_dict(config):
        config.trunk, config.tasks = {}, {}
        if default and not any(str(o).lstrip("+").startswith("model.inputs=") for o in hydra.overrides.task):
            config.model.pop("inputs", None)  # the default model's


def _script_defaults(config: DictConfig) -> dict[str, Any]:
    """Return the defaults list of the script's config, by group."""
    name = OmegaConf.select(config, "hydra.job.config_name")
    for source in OmegaConf.select(config, "hydra.runtime.config_sources") or []:
        file = Path(source.path) / f"{name}.yaml"
        if source.schema == "file" and file.is_file():
            listed = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("defaults") or []
            return {k: v for entry in listed if isinstance(entry, dict) for k, v in entry.items()}
    return {}
