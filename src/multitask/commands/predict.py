"""Write a checkpoint's predictions: python scripts/predict.py ckpt_path=<file> data.path=<file>."""

import hydra
from omegaconf import DictConfig

from multitask.places import CONFIGS
from multitask.run.checkpoint import offer_config
from multitask.run.cli import errors_as_sentences, launch


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="predict")
def main(config: DictConfig) -> None:
    """Write the predictions of the weights that ``ckpt_path`` names."""
    with errors_as_sentences():
        from multitask.run.predict import predict

        predict(config)


def command() -> None:
    """Run it by ``sys.argv``."""
    launch(main, before=offer_config)


if __name__ == "__main__":
    command()
