"""Write down single-task baselines: python scripts/baselines.py source=<sweep folder>."""

from pathlib import Path

import hydra
from omegaconf import DictConfig, ListConfig

from multitask.errors import ConfigError
from multitask.places import CONFIGS
from multitask.run.cli import launch
from multitask.sweep.baseline import record


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="baselines")
def main(config: DictConfig) -> None:
    """Add the runs' figures to the files of their experiments."""
    if not config.source:
        raise ConfigError("source is missing; give the folder of a sweep with baseline=single_task.")
    sources = config.source if isinstance(config.source, ListConfig) else [config.source]
    for path, count in record([Path(source) for source in sources], Path(config.output)).items():
        print(f"{path}: {count} figures")


def command() -> None:
    """Run it by ``sys.argv``."""
    launch(main)


if __name__ == "__main__":
    command()
