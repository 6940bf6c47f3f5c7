"""Export a checkpoint's model: python scripts/export.py ckpt_path=<file> format=onnx."""

from omegaconf import DictConfig

from multitask.run.checkpoint import register_checkpoint_config
from multitask.run.cli import command


@command("export", before=register_checkpoint_config)
def main(config: DictConfig) -> None:
    """Write the model of ``ckpt_path`` to one file."""
    from multitask.run.export import export

    export(config)


if __name__ == "__main__":
    main()
