"""Measure a checkpoint: python scripts/eval.py ckpt_path=<file> (elsewhere: paths.data=/datasets)."""

import hydra
from omegaconf import DictConfig

from multitask.places import CONFIGS
from multitask.run.checkpoint import offer_config
from multitask.run.cli import errors_as_sentences, launch


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="eval")
def main(config: DictConfig) -> None:
    """Measure the weights that ``ckpt_path`` names."""
    with errors_as_sentences():
        from multitask.run.eval import evaluate_checkpoint

        evaluate_checkpoint(config)


def command() -> None:
    """Run it by ``sys.argv``."""
    launch(main, before=offer_config)


if __name__ == "__main__":
    command()
