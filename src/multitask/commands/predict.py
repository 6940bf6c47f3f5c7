"""Write a checkpoint's predictions: python scripts/predict.py ckpt_path=<file> data.path=<file>."""

from omegaconf import DictConfig

from multitask.run.checkpoint import register_checkpoint_config
from multitask.run.cli import command


@command("predict", before=register_checkpoint_config)
def main(config: DictConfig) -> None:
    """Write the predictions of the weights of ``ckpt_path``."""
    from multitask.run.predict import predict

    predict(config)


if __name__ == "__main__":
    main()
