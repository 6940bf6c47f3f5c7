"""Record single-task baselines: python scripts/baselines.py source=<sweep folder>."""

from pathlib import Path

from omegaconf import DictConfig, ListConfig

from multitask.errors import ConfigError
from multitask.run.cli import command
from multitask.sweep.baseline import record


@command("baselines")
def main(config: DictConfig) -> None:
    """Add the runs' results to the files of their experiments."""
    if not config.source:
        raise ConfigError("source is missing; give the folder of a sweep with baseline=single_task.")
    sources = config.source if isinstance(config.source, ListConfig) else [config.source]
    for path, count in record([Path(source) for source in sources], Path(config.output)).items():
        print(f"{path}: {count} rows")


if __name__ == "__main__":
    main()
