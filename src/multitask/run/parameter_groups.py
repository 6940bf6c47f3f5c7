"""Optimizer settings for parts of the model, by patterns of parameter names."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from inspect import signature
from typing import Any

from torch import nn
from torch.optim import Optimizer

from multitask.errors import ConfigError, choices

Groups = list[dict[str, Any]]
_KEY = "parameter_groups"


@dataclass(frozen=True)
class Grouped:
    """Builds an optimizer with separate settings for the parameters whose names match a pattern.

    Called with parameter groups, like an optimizer's class. Each group is split by pattern; a pattern's settings
    override the group's.
    """

    make: Callable[..., Optimizer]
    """Parameter groups → optimizer."""
    settings: Mapping[str, Mapping[str, Any]]
    """Settings, such as ``lr`` and ``weight_decay``, by pattern (``tasks.left.*``)."""
    module: nn.Module
    """The parameters are named as in its ``named_parameters``."""

    def __call__(self, groups: Groups) -> Optimizer:
        """Return the optimizer; refuse patterns that match nothing or overlap, and settings that it does not take."""
        names = {id(p): name for name, p in self.module.named_parameters()}
        pattern_of = {name: self._pattern(name) for name in names.values()}
        used = set(pattern_of.values())
        if unused := next((each for each in self.settings if each not in used), None):
            known = choices(unused, _parts(names.values()))
            raise ConfigError(f"{_KEY}: '{unused}' matches no parameter; {known}")
        cut: Groups = []
        for group in groups:
            for pattern, settings in ((None, {}), *self.settings.items()):
                own = [p for p in group["params"] if pattern_of[names[id(p)]] == pattern]
                if own:
                    cut.append({**group, **settings, "params": own})
        optimizer = self.make(cut)
        for pattern, settings in self.settings.items():
            for key in settings:
                if key not in optimizer.defaults:
                    raise ConfigError(
                        f"{_KEY}: '{pattern}' sets {key}, which {type(optimizer).__name__} does not have; "
                        f"{choices(key, optimizer.defaults)}"
                    )
            self._check_values(pattern, settings, [{"params": group["params"]} for group in cut])
        return optimizer

    def _check_values(self, pattern: str, settings: Mapping[str, Any], groups: Groups) -> None:
        """Reject values that the optimizer rejects as its own; it does not check those of groups."""
        takes = signature(self.make).parameters
        try:
            own = {key: value for key, value in settings.items() if key in takes}
            self.make(groups, **own)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{_KEY}: '{pattern}' has {dict(settings)} ({error}); change the value."
            ) from error

    def _pattern(self, name: str) -> str | None:
        found = [pattern for pattern in self.settings if fnmatchcase(name, pattern)]
        if len(found) > 1:
            raise ConfigError(
                f"{_KEY}: '{found[0]}' and '{found[1]}' both match {name}; let each parameter match one pattern."
            )
        return found[0] if found else None


def _parts(names: Iterable[str]) -> set[str]:
    """Return patterns for the parts of the model: ``trunk.*``, ``tasks.left.*``."""
    return {".".join([*name.split(".")[: 2 if name.startswith("tasks.") else 1], "*"]) for name in names}
