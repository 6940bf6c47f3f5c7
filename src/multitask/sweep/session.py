"""One session of a sweep: launch what is not done yet, and see it through."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from multitask.errors import ConfigError, RunFailed
from multitask.run.record import write_atomically
from multitask.sweep.command import RECORD
from multitask.sweep.job import record_failure
from multitask.sweep.plan import Job
from multitask.sweep.signals import Stop
from multitask.sweep.state import COMPLETED, FAILED, INTERRUPTED, RUNNING, WAITING, read_record, status_of

# What to install for a launcher, by the package its plugin lies in.
_EXTRAS = {"hydra_joblib_launcher": "sweeps", "hydra_submitit_launcher": "sweeps", "multitask_ray": "ray"}


@contextmanager
def as_installed(config: DictConfig) -> Iterator[None]:
    """Say what to install where the block asks Hydra for a plugin that is not installed.

    Raises:
        ConfigError: Naming the package's extra.
    """
    try:
        yield
    except (RuntimeError, ImportError) as error:
        package = str(config.hydra.launcher.get("_target_", "")).split(".")[1:2]
        extra = _EXTRAS.get(package[0]) if package else None
        if extra is None:
            raise
        choice = config.hydra.runtime.choices["hydra/launcher"]
        raise ConfigError(
            f'hydra/launcher={choice} is not installed; install it with pip install -e ".[{extra}]".'
        ) from error


def begin(folder: Path, jobs: Sequence[Job]) -> None:
    """Write down the sweep's command and jobs, so that ``sweep=<id>`` can take it up again.

    Raises:
        ConfigError: If the folder is that of a sweep with jobs that this one has not.
    """
    path = folder / RECORD
    names = [job.folder.name for job in jobs]
    if path.is_file():
        lost = [name for name in json.loads(path.read_text(encoding="utf-8"))["jobs"] if name not in names]
        if lost:
            raise ConfigError(
                f"sweep={folder.name} has {len(lost)} jobs that this command leaves out, {lost[0]} among them; a sweep "
                "can be given more values, but not other ones: start another one for these."
            )
    for job in jobs:
        record = read_record(job.folder)
        if record.get("status") == COMPLETED and record.get("config_digest") != job.recipe:
            raise ConfigError(
                f"sweep={folder.name}: {job.folder.name} has completed by another recipe than the config's present "
                "one; start another sweep, or remove that folder to run the job again."
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"arguments": sys.argv[1:], "jobs": names}, indent=2) + "\n")


def launch(launcher: Launcher, jobs: Sequence[Job], stop: Stop, size: int | None = None) -> None:
    """Run the jobs that are neither done nor running elsewhere.

    Args:
        launcher: Hydra's.
        jobs: The jobs.
        stop: Whether to stop.
        size: Jobs handed to the launcher at once; ``None`` for all.
    """
    left = [job for job in jobs if status_of(job.folder) not in (COMPLETED, RUNNING)]
    size = size or max(1, len(left))
    batches = [left[start : start + size] for start in range(0, len(left), size)]
    dead: set[Path] = set()
    while batches:
        batch = batches.pop(0)
        try:
            launcher.launch([list(job.overrides) for job in batch], initial_job_idx=jobs.index(batch[0]))
        except Exception as error:
            stop.check()
            batches = _after_death(batch, dead, error) + batches
        stop.check()


def _after_death(batch: Sequence[Job], dead: set[Path], error: Exception) -> list[list[Job]]:
    """Return what is to be launched again after a process has died, once the others have ended.

    A process that dies takes down those that its launcher ran beside it. Each of them is launched alone then:
    then the one that dies again is the one to blame.
    """
    while any(status_of(job.folder) == RUNNING for job in batch):
        time.sleep(0.2)
    suspects = [job for job in batch if status_of(job.folder) == INTERRUPTED]
    waiting = [job for job in batch if status_of(job.folder) == WAITING]
    if not suspects and len(waiting) == len(batch):
        # No job has begun: it is the launcher that does not work.
        raise error
    for job in suspects:
        if job.folder in dead:
            facts = {"method": job.method, "seed": job.seed, "overrides": list(job.overrides)}
            record_failure(job.folder, facts, "its process died without a word: killed, or out of memory")
    again = [[job] for job in suspects if job.folder not in dead]
    dead.update(job.folder for job in suspects)
    return [*again, *([waiting] if waiting else [])]


def fail_for(jobs: Sequence[Job]) -> None:
    """Raise :class:`RunFailed` if a job has failed or was not done."""
    statuses = [status_of(job.folder) for job in jobs]
    if elsewhere := statuses.count(RUNNING):
        print(
            f"{elsewhere} of {len(jobs)} jobs still run elsewhere: give the command again when they have ended."
        )
    wrong = [status for status in statuses if status in (FAILED, INTERRUPTED, WAITING)]
    if wrong:
        counts = ", ".join(f"{wrong.count(status)} {status}" for status in dict.fromkeys(wrong))
        raise RunFailed(f"{len(wrong)} of {len(jobs)} jobs did not complete ({counts}).")
