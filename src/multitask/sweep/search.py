"""A search with Optuna, whose trials run as jobs of the sweep."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from multitask.errors import ConfigError
from multitask.run.record import write_atomically
from multitask.sweep.objectives import Objective, measure
from multitask.sweep.plan import Job
from multitask.sweep.space import Space

STUDY = "study.db"
RESULT = "search.json"

Plan = Callable[[Sequence[Sequence[str]]], list[Job]]


class Search:
    """An Optuna study that is stored on disk and can be resumed.

    Args:
        folder: The sweep's folder, which contains the study unless ``storage`` is given.
        space: The search space.
        objectives: The values to optimize.
        sampler: Config of Optuna's sampler.
        storage: URL of another database.
        plan: Creates jobs from overrides.
        selection: The key that selects a run's weights.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        objectives: Sequence[Objective],
        sampler: DictConfig,
        storage: str | None,
        plan: Plan,
        selection: str | None,
    ) -> None:
        import optuna  # deferred: it is an extra

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.objectives, self.selection = space, objectives, selection
        self.jobs: list[Job] = []
        self._plan = plan
        self._by_overrides: dict[tuple[str, ...], Job] = {}
        self.study = optuna.create_study(
            study_name=folder.name,
            storage=storage or f"sqlite:///{folder / STUDY}",
            directions=[each.direction for each in objectives],
            load_if_exists=True,
        )
        if [each.name.lower() for each in self.study.directions] != [each.direction for each in objectives]:
            raise ConfigError(f"sweep={folder.name} has other objectives; start another sweep for these.")
        known = len(self.study.trials)
        # With the same seed, a resumed search would draw its first trials again.
        again = {"seed": sampler.seed + known} if known and sampler.get("seed") is not None else {}
        self.study.sampler = instantiate(sampler, **again)
        self.study.set_user_attr("objectives", [each.key for each in objectives])

    def unfinished(self) -> list[Any]:
        """Return the unfinished trials of an earlier command, after planning the jobs of all trials."""
        from optuna.trial import TrialState

        for trial in self.study.trials:
            if set(trial.params) != set(self.space.distributions):
                raise ConfigError(
                    f"the search varies {', '.join(trial.params)}, and not "
                    f"{', '.join(self.space.distributions)}; start another sweep for another space."
                )
            self.jobs_of(trial)
        return [trial for trial in self.study.trials if trial.state == TrialState.RUNNING]

    def ask(self) -> Any:
        """Return a new trial."""
        try:
            return self.study.ask(fixed_distributions=dict(self.space.distributions))
        except ValueError as error:
            raise ConfigError(f"the space has changed since the search began: {error}") from error

    def jobs_of(self, trial: Any) -> list[Job]:
        """Return a trial's jobs; trials with equal settings share them."""
        overrides = self.space.jobs(trial.params)
        new = [own for own in overrides if own not in self._by_overrides]
        for own, job in zip(new, self._plan(new) if new else [], strict=True):
            self._by_overrides[own] = job
            self.jobs.append(job)
        return [self._by_overrides[own] for own in overrides]

    def tell(self, trial: Any) -> None:
        """Report a trial's values to the study, or that one of its jobs failed."""
        from optuna.trial import TrialState

        values = measure(self.jobs_of(trial), self.objectives, self.selection)
        if values is None:
            self.study.tell(trial.number, state=TrialState.FAIL)
        else:
            self.study.tell(trial.number, values)

    def write(self, path: Path) -> None:
        """Write all trials and the best ones to a JSON file."""
        trials = [
            {"trial": t.number, "state": t.state.name.lower(), "values": t.values, "params": t.params,
             "runs": [job.folder.name for job in self.jobs_of(t)]}
            for t in self.study.trials
        ]  # fmt: skip
        content = {
            "objectives": {each.key: each.mode for each in self.objectives},
            "best": [trial.number for trial in self._best()],
            "trials": trials,
        }
        write_atomically(path, json.dumps(content, indent=2) + "\n")

    def show(self) -> None:
        """Print the best setting, or, with several objectives, the Pareto front."""
        best, count = self._best(), len(self.study.trials)
        several = len(self.objectives) > 1
        if several:
            print(f"Pareto front: {len(best)} of {count} trials, not dominated by any other:")
        for trial in best:
            values = ", ".join(
                f"{o.key} {value:.4g}" for o, value in zip(self.objectives, trial.values, strict=True)
            )
            params = " ".join(f"{key}={value}" for key, value in trial.params.items())
            what = f"trial {trial.number}" if several else f"best: trial {trial.number} of {count}"
            print(f"{what} ({values}): {params}")

    def _best(self) -> list[Any]:
        from optuna.trial import TrialState

        if not any(trial.state == TrialState.COMPLETE for trial in self.study.trials):
            return []
        best: list[Any] = self.study.best_trials
        return best if len(self.objectives) > 1 else best[:1]
