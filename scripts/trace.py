"""List the files that one training step goes through: python scripts/trace.py weighting=upgrad. Keys: as train.py."""

from multitask.commands.trace import command

if __name__ == "__main__":
    command()
