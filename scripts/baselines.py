"""Write down single-task baselines: python scripts/baselines.py source=<sweep folder>."""

from multitask.commands.baselines import command

if __name__ == "__main__":
    command()
