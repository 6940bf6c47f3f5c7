"""Jobs as tasks of a Ray cluster."""

import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from multitask.errors import ConfigError, on_one_line

# How long jobs may take to save when the sweep is stopped, in seconds.
GRACE = 60.0


class RayLauncher(Launcher):
    """Hands every job to Ray, and waits for all of them, whatever becomes of one.

    Args:
        init: Arguments of ``ray.init``; without an address Ray is started on this machine.
        remote: Arguments of ``ray.remote``: what a job needs of the cluster.
    """

    def __init__(self, init: Mapping[str, Any], remote: Mapping[str, Any]) -> None:
        self.init = init
        self.remote = remote

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives.

        Raises:
            ImportError: If Ray is not installed.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when it is imported
        import ray  # noqa: F401

        self.context = hydra_context
        self.task = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs.

        Raises:
            ConfigError: If there is no such cluster.
            RuntimeError: If a job's process died; the others have ended then.
        """
        import ray
        from ray.exceptions import RayError

        setup_globals()
        self._connect()
        # A process a job: what a job leaves in one, its GPU among it, is no other job's.
        remote = ray.remote(**{"max_calls": 1, **_plain(self.remote)})(_run)
        state = Singleton.get_state()
        jobs = [
            remote.remote(self.context, self._job(overrides, number), self.task, state, os.getcwd())
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        try:
            ray.wait(jobs, num_returns=len(jobs), fetch_local=False)
        except (KeyboardInterrupt, SystemExit):  # the sweep is asked to stop
            # As Ctrl-C would in a job's own terminal: it saves and stops.
            for job in jobs:
                ray.cancel(job)
            ray.wait(jobs, num_returns=len(jobs), timeout=GRACE, fetch_local=False)
            raise
        returns = []
        died: RayError | None = None
        for job in jobs:
            try:
                returns.append(ray.get(job))
            except RayError as error:
                died = error
        if died is not None:
            raise RuntimeError("a job's process died") from died
        return returns

    def _connect(self) -> None:
        import ray

        if ray.is_initialized():
            return
        init = _plain(self.init)
        # Ray takes the signals by which a sweep is stopped: they are given back.
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            ray.init(**init)
        except (ConnectionError, ValueError) as error:
            why = on_one_line(error)
            raise ConfigError(
                f"hydra.launcher.init.address={init.get('address')}: Ray does not answer ({why}); give a cluster's "
                "address, auto, or null."
            ) from error
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _job(self, overrides: Sequence[str], number: int) -> DictConfig:
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = f"{config.hydra.job.name}_{number}"
            config.hydra.job.num = number
        return config


def _run(
    context: HydraContext, config: DictConfig, task: TaskFunction, state: dict[Any, Any], folder: str
) -> JobReturn:
    os.chdir(folder)  # relative paths mean the same in every process
    setup_globals()
    Singleton.set_state(state)
    HydraConfig.instance().set_config(config)
    return run_job(
        hydra_context=context,
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if value is not None}
