"""Measure speed: python scripts/benchmark.py (quick=true for a minute). Keys: configs/benchmark.yaml."""

import hydra
from omegaconf import DictConfig

from multitask.run.cli import errors_as_sentences, launch


@hydra.main(version_base="1.3", config_path="../configs", config_name="benchmark")
def main(config: DictConfig) -> None:
    """Measure, print the tables, and write them to ``output``."""
    with errors_as_sentences():
        from multitask.benchmark.run import run

        run(config)


if __name__ == "__main__":
    launch(main)
