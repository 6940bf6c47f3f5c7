"""Compare runs: `python scripts/compare.py source=<sweep folder | files | globs>`.

The keys are explained in configs/compare.yaml.
"""

from omegaconf import DictConfig, OmegaConf

from multitask.errors import ConfigError
from multitask.run.cli import command
from multitask.run.schema import COMPARE, check_values
from multitask.terminal import terminal


@command("compare")
def main(config: DictConfig) -> None:
    """Read the records, print the comparison, and write it to the output folder."""
    if OmegaConf.is_missing(config, "source"):
        raise ConfigError("source is missing; give a sweep folder, a run folder, a CSV file or a glob.")
    check_values(config, COMPARE)
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)

    # Deferred, so that a mistyped key fails before pandas and Matplotlib are loaded.
    from multitask.evaluation.compare import compare
    from multitask.evaluation.comparison import Settings

    source, output, baselines = (values.pop(key) for key in ("source", "output", "baselines"))
    compare(source, output, Settings(**values), baselines, terminal())  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
