"""Build a comparison's W&B workspace: python scripts/dashboard.py project=<project> source=<sweep folder>.

The keys are explained in configs/dashboard.yaml.
"""

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from multitask.errors import ConfigError
from multitask.private import specification
from multitask.run.cli import command
from multitask.run.schema import COMPARE, check_values


@command("dashboard")
def main(config: DictConfig) -> None:
    """Build one workspace per experiment, and save it to W&B or to a file."""
    if OmegaConf.is_missing(config, "project"):
        raise ConfigError("project is missing; give the W&B project of the runs, as logger.wandb.project.")
    check_values(config, COMPARE)
    if bool(config.source) == bool(config.experiment_name):
        raise ConfigError(
            "give either source=<sweep folder> or experiment_name=<name>, which defines the tasks."
        )
    _build(config)


def _build(config: DictConfig) -> None:
    # Deferred, so that a mistyped key fails before pandas and W&B are loaded.
    from multitask.evaluation import board as boards
    from multitask.evaluation.comparison import Settings
    from multitask.evaluation.errors import ComparisonError

    try:
        from multitask.evaluation import dashboard
    except ModuleNotFoundError as error:
        raise ComparisonError(
            'wandb-workspaces is not installed; install it with pip install -e ".[dashboard]".'
        ) from error
    values: Any = OmegaConf.to_container(config, resolve=True)
    if config.experiment_name:
        tasks = hydra.compose("train", overrides=[f"experiment={config.experiment_name}"]).tasks
        metrics = {str(name): [str(key) for key in task.get("metrics") or {}] for name, task in tasks.items()}
        found = [boards.from_tasks(str(config.experiment_name).replace("/", "-"), metrics, config.split)]
    else:
        chosen = {key: values[key] for key in ("split", "metrics", "accept_other_baseline")}
        found = boards.from_records(values["source"], values["baselines"], Settings(**chosen))
    for board in found:
        made = dashboard.workspace(board, config.project, config.entity or "", values["scatter"])
        if not board.delta_m:
            print(f"{board.experiment}: no bars of Δm: {board.no_delta_m}.")
        if config.output is None:
            print(dashboard.save(made, config.replace))
            continue
        path = Path(config.output)
        if len(found) > 1:
            path = path.with_name(f"{path.stem}-{board.experiment}{path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(specification(made), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
