"""Evaluate a checkpoint: python scripts/eval.py ckpt_path=<file> (on another machine: paths.data=/datasets)."""

from omegaconf import DictConfig

from multitask.run.checkpoint import register_checkpoint_config
from multitask.run.cli import command


@command("eval", before=register_checkpoint_config)
def main(config: DictConfig) -> None:
    """Evaluate the weights of ``ckpt_path``."""
    from multitask.run.eval import evaluate_checkpoint

    evaluate_checkpoint(config)


if __name__ == "__main__":
    main()
