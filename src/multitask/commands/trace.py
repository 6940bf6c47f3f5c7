"""List the files that one training step goes through: python scripts/trace.py weighting=upgrad. Keys: as train.py."""

import hydra
from omegaconf import DictConfig

from multitask.places import CONFIGS
from multitask.run.cli import errors_as_sentences, launch


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def main(config: DictConfig) -> None:
    """Take three steps, and print what the third went through."""
    with errors_as_sentences():
        from multitask.run.trace import trace_step

        trace = trace_step(config)
        for name, calls in trace.files.items():
            print(f"{calls:5} calls  {name}")
        print(f"{len(trace.files)} files, {trace.changes} changes of file")


def command() -> None:
    """Run it by ``sys.argv``."""
    launch(main)


if __name__ == "__main__":
    command()
