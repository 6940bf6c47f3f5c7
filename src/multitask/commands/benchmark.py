"""Measure speed: python scripts/benchmark.py (quick=true for a minute). Keys: configs/benchmark.yaml."""

import hydra
from omegaconf import DictConfig

from multitask.places import CONFIGS
from multitask.run.cli import errors_as_sentences, launch


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="benchmark")
def main(config: DictConfig) -> None:
    """Measure, print the tables, and write them to ``output``."""
    with errors_as_sentences():
        from multitask.benchmark.run import run

        run(config)


def command() -> None:
    """Run it by ``sys.argv``."""
    launch(main)


if __name__ == "__main__":
    command()
