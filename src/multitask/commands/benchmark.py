"""Measure speed: python scripts/benchmark.py (quick=true for a minute). Keys: configs/benchmark.yaml."""

from omegaconf import DictConfig

from multitask.run.cli import command


@command("benchmark")
def main(config: DictConfig) -> None:
    """Measure, print the tables, and write them to ``output``."""
    from multitask.benchmark.run import run

    run(config)


if __name__ == "__main__":
    main()
