"""Train: python scripts/train.py weighting=upgrad seed=1 (a sweep: -m weighting=imtl_l,upgrad seed=0,1,2)."""

from functools import partial

import hydra
from omegaconf import DictConfig

from multitask.places import CONFIGS
from multitask.run.cli import launch
from multitask.sweep.command import prepend_sweep_arguments
from multitask.sweep.job import run


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def train(config: DictConfig) -> float | None:
    """Train one run; heavy imports are deferred until the config is composed and checked."""
    return run(config)


main = partial(launch, train, before=prepend_sweep_arguments)

if __name__ == "__main__":
    main()
