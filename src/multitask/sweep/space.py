"""The search space: Hydra's overrides as Optuna distributions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from multitask.errors import ConfigError

SEED = "seed"


@dataclass(frozen=True)
class Space:
    """The fixed overrides, the searched ones, and the seeds over which a setting is averaged.

    Args:
        fixed: Overrides of every job.
        distributions: Optuna's distributions by key.
        seeds: Overrides of the seed, one per job of a trial; empty to use the config's seed.
    """

    fixed: tuple[str, ...]
    distributions: Mapping[str, Any]
    seeds: tuple[str, ...]

    def jobs(self, params: Mapping[str, Any]) -> list[tuple[str, ...]]:
        """Return the overrides of a trial's jobs."""
        own = (*self.fixed, *(f"{key}={params[key]}" for key in self.distributions))
        return [(*own, seed) for seed in self.seeds] or [own]

    def probe(self) -> list[tuple[str, ...]]:
        """Return the jobs of an arbitrary setting, to check them."""
        some = {
            key: each.choices[0] if hasattr(each, "choices") else each.low
            for key, each in self.distributions.items()
        }
        return self.jobs(some)


def space(overrides: Sequence[Override]) -> Space:
    """Split overrides into fixed ones, distributions and seeds; the last override of a key wins.

    ``interval(a, b)`` is a number between a and b, ``int(interval(a, b))`` an integer, and ``tag(log, interval(a, b))``
    a number on a logarithmic scale. ``range(a, b, step)`` is a number of that grid; comma-separated values and
    ``choice(…)`` are categories. Several seeds are not searched: a setting's value is its mean over them.
    """
    last = {str(override.get_key_element()): override for override in overrides}
    seeds = last.pop(SEED, None)
    searched = {key: override for key, override in last.items() if override.is_sweep_override()}
    if not searched:
        raise ConfigError(
            "hparams_search has nothing to search; give a range, for example "
            "'optimizer.lr=tag(log,interval(1e-4,1e-1))'."
        )
    return Space(
        fixed=tuple(
            f"{key}={o.get_value_element_as_str()}" for key, o in last.items() if key not in searched
        ),
        distributions={key: _distribution(override) for key, override in searched.items()},
        seeds=() if seeds is None else tuple(f"{SEED}={seed}" for seed in _values(seeds)),
    )


def _distribution(override: Override) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    kind: Any
    if isinstance(value, IntervalSweep):
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        kind = IntDistribution if whole else FloatDistribution
        return kind(value.start, value.end, log="log" in value.tags)
    if isinstance(value, RangeSweep):
        steps: list[Any] = list(value.range())
        kind = IntDistribution if all(isinstance(step, int) for step in steps) else FloatDistribution
        return kind(min(steps), max(steps), step=abs(steps[1] - steps[0]) if len(steps) > 1 else 1)
    return CategoricalDistribution(_values(override))


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: a seed cannot be searched; list the seeds, seed=0,1,2.")
    return list(override.sweep_string_iterator())
