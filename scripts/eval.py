"""Measure a checkpoint: python scripts/eval.py ckpt_path=<file> (elsewhere: paths.data=/datasets)."""

import hydra
from omegaconf import DictConfig

from multitask.run.checkpoint import offer_config
from multitask.run.cli import errors_as_sentences, launch


@hydra.main(version_base="1.3", config_path="../configs", config_name="eval")
def main(config: DictConfig) -> None:
    """Measure the weights that ``ckpt_path`` names."""
    with errors_as_sentences():
        from multitask.run.eval import evaluate_checkpoint

        evaluate_checkpoint(config)


if __name__ == "__main__":
    launch(main, before=offer_config)
