"""Measure a checkpoint: python scripts/eval.py ckpt_path=<file> (elsewhere: paths.data=/datasets)."""

from omegaconf import DictConfig

from multitask.run.checkpoint import offer_config
from multitask.run.cli import command


@command("eval", before=offer_config)
def main(config: DictConfig) -> None:
    """Measure the weights that ``ckpt_path`` names."""
    from multitask.run.eval import evaluate_checkpoint

    evaluate_checkpoint(config)


if __name__ == "__main__":
    main()
