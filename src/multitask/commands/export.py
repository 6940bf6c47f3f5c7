"""Export a checkpoint's model: python scripts/export.py ckpt_path=<file> format=onnx."""

import hydra
from omegaconf import DictConfig

from multitask.places import CONFIGS
from multitask.run.checkpoint import offer_config
from multitask.run.cli import errors_as_sentences, launch


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="export")
def main(config: DictConfig) -> None:
    """Write the model that ``ckpt_path`` names as one file."""
    with errors_as_sentences():
        from multitask.run.export import export

        export(config)


def command() -> None:
    """Run it by ``sys.argv``."""
    launch(main, before=offer_config)


if __name__ == "__main__":
    command()
