"""Plans a sweep: composes and checks all jobs before the first one starts."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from multitask.errors import ConfigError
from multitask.evaluation.names import SINGLE_TASK
from multitask.run.arguments import quoted
from multitask.run.checks import check
from multitask.run.model_choice import is_own
from multitask.run.record import recipe_digest
from multitask.run.resolvers import plain

_OF_WEIGHTING = re.compile(r"\+{0,2}weighting[.=]")
# Keys of where and how a job runs, which do not change its results or its folder.
_COSMETIC = re.compile(
    r"(logger|paths)(\.|$)|trainer\.(enable_\w+|accelerator|devices|strategy|num_nodes|log_every_n_steps|profiler)$"
)


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    overrides: tuple[str, ...]
    folder: Path
    method: str
    seed: int
    recipe: str
    """The digest of what its results depend on."""


def pin(master: DictConfig, batch: Sequence[Sequence[str]]) -> Path:
    """Make every job use the sweep's folder, which is returned, and name it by the overrides that distinguish it."""
    folder = Path(master.hydra.sweep.dir).absolute()
    varied = {o.partition("=")[0] for overrides in batch for o in overrides if o not in batch[0]}
    named = {o.partition("=")[0] for overrides in batch for o in overrides}
    excluded = set(master.hydra.job.config.override_dirname.exclude_keys)
    excluded |= {key for key in named - varied if _COSMETIC.match(key.lstrip("+"))}
    pinned = [
        f"hydra.sweep.dir={quoted(str(folder))}",
        f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(quoted, sorted(excluded)))}]",
    ]
    with read_write(master.hydra), open_dict(master.hydra):
        master.hydra.sweep.dir = str(folder)
        master.hydra.overrides.hydra.extend(pinned)
    return folder


def plan(loader: ConfigLoader, master: DictConfig, batch: Sequence[Sequence[str]]) -> list[Job]:
    """Compose and check each job, and return them with their folders; refuse two jobs that would share a folder.

    Args:
        loader: Hydra's config loader.
        master: The sweep's own config.
        batch: Each job's overrides.
    """
    configs = _Configs(loader, master)
    jobs: dict[Path, Job] = {}
    alone: set[tuple[str, ...]] = set()
    for given in batch:
        for overrides in _one_per_task(configs, given):
            if overrides is not given:
                if tuple(overrides) in alone:
                    continue  # the baseline of another weighting's job is the same run
                alone.add(tuple(overrides))
            job = _job(configs.get(overrides), overrides)
            if job.folder in jobs:
                raise ConfigError(
                    f"jobs '{' '.join(jobs[job.folder].overrides)}' and '{' '.join(overrides)}' share the folder "
                    f"{job.folder.name}; give each value once, and let hydra.sweep.subdir distinguish jobs."
                )
            jobs[job.folder] = job
    return list(jobs.values())


def _one_per_task(configs: "_Configs", overrides: Sequence[str]) -> list[Sequence[str]]:
    """Split a job of the single-task baseline into one per task; return other jobs unchanged.

    A single loss needs no weighting, so overrides of the weighting are dropped.
    """
    config = configs.get(overrides)
    if config.hydra.runtime.choices.get("baseline") != SINGLE_TASK or config.get("only") or is_own(config):
        return [overrides]
    # A penalty has no head, and cannot be learned alone.
    own = [override for override in overrides if not _OF_WEIGHTING.match(override)]
    return [[*own, f"only={name}"] for name, task in config.tasks.items() if "head" in task]


def _job(config: DictConfig, overrides: Sequence[str]) -> Job:
    with as_current(config) as folder:
        try:
            check(config)
        except ConfigError as error:
            raise ConfigError(f"job {' '.join(overrides)}: {error}") from None
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        recipe = recipe_digest(plain(own))
        return Job(tuple(overrides), folder, str(config.method), int(config.seed), recipe)


class _Configs:
    """The jobs' configs; jobs that differ only in the seed are composed once, since composing is slow."""

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self._loader = loader
        self._master = master
        self._known: dict[tuple[str, ...], DictConfig] = {}

    def get(self, overrides: Sequence[str]) -> DictConfig:
        """Return a copy of the config for these overrides."""
        rest = tuple(o for o in overrides if not o.startswith("seed="))
        seeds = [o.partition("=")[2] for o in overrides if o.startswith("seed=")]
        if rest not in self._known or not all(seed.isdecimal() for seed in seeds):
            self._known[rest] = self._loader.load_sweep_config(self._master, list(overrides))
        config = deepcopy(self._known[rest])
        with read_write(config), read_write(config.hydra), open_dict(config.hydra):
            config.hydra.overrides.task = list(overrides)
            if seeds:
                config.seed = int(seeds[-1])
        return config


@contextmanager
def as_current(config: DictConfig) -> Iterator[Path]:
    """Make ``${hydra:…}`` resolve in a job's config as it will in the job, and yield the job's folder."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        folder = Path(config.hydra.sweep.dir).absolute() / str(config.hydra.sweep.subdir)
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(config)
        yield folder
    finally:
        HydraConfig.instance().cfg = before
