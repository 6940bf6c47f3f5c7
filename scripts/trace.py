"""List the files that one training step runs through: python scripts/trace.py weighting=upgrad. Keys: as train.py."""

from multitask.commands.trace import main

if __name__ == "__main__":
    main()
