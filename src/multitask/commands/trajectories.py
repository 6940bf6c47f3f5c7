"""Draw the trajectories of a toy problem's runs in one figure: python scripts/trajectories.py source=<sweep folder>."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from multitask.errors import ConfigError
from multitask.places import CONFIGS
from multitask.run.cli import errors_as_sentences, launch


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="trajectories")
def main(config: DictConfig) -> None:
    """Draw, and say where the figure is."""
    with errors_as_sentences():
        if not config.source:
            raise ConfigError("source is missing; give the folder of a sweep with experiment=toy.")
        from multitask.evaluation.plots.trajectories import draw_ways, read_ways

        figure = draw_ways(read_ways(Path(config.source)))
        figure.savefig(config.output, dpi=150)
        print(config.output)


def command() -> None:
    """Run it by ``sys.argv``."""
    launch(main)


if __name__ == "__main__":
    command()
