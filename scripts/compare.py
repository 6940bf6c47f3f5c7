"""Compare runs: `python scripts/compare.py source=<sweep folder | files | globs>`.

The keys are explained in configs/compare.yaml.
"""

import sys

import hydra
from omegaconf import DictConfig, OmegaConf


@hydra.main(version_base="1.3", config_path="../configs", config_name="compare")
def main(config: DictConfig) -> None:
    """Read the records, print the comparison, and write it to the output folder."""
    if OmegaConf.is_missing(config, "source"):
        sys.exit("source is missing: say source=<sweep folder, run folder, CSV file or glob>.")
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)

    # Only now, so that a typing error is answered before pandas and Matplotlib are loaded.
    from rich.console import Console

    from multitask.evaluation.compare import compare
    from multitask.evaluation.comparison import Settings
    from multitask.evaluation.errors import ComparisonError

    source, output, baselines = (values.pop(key) for key in ("source", "output", "baselines"))
    try:
        compare(source, output, Settings(**values), baselines, Console())  # type: ignore[arg-type]
    except ComparisonError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
