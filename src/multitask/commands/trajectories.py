"""Draw the trajectories of a toy problem's runs in one plot: python scripts/trajectories.py source=<sweep folder>."""

from pathlib import Path

from omegaconf import DictConfig

from multitask.errors import ConfigError
from multitask.run.cli import command


@command("trajectories")
def main(config: DictConfig) -> None:
    """Draw the plot and print its path."""
    if not config.source:
        raise ConfigError("source is missing; give the folder of a sweep with experiment=toy.")
    from multitask.evaluation.plots.trajectories import draw_trajectories, read_trajectories

    plot = draw_trajectories(read_trajectories(Path(config.source)))
    plot.savefig(config.output, dpi=150)
    print(config.output)


if __name__ == "__main__":
    main()
