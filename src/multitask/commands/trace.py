"""List the files that one training step runs through: python scripts/trace.py weighting=upgrad. Keys: as train.py."""

from omegaconf import DictConfig

from multitask.run.cli import command


@command("train")
def main(config: DictConfig) -> None:
    """Take three steps, and print the files that the third one ran through."""
    from multitask.run.trace import trace_step

    trace = trace_step(config)
    for name, calls in trace.files.items():
        print(f"{calls:5} calls  {name}")
    print(f"{len(trace.files)} files, {trace.changes} changes of file")


if __name__ == "__main__":
    main()
