"""Compare runs: `python scripts/compare.py source=<sweep folder | files | globs>`.

The keys are explained in configs/compare.yaml.
"""

from multitask.commands.compare import command

if __name__ == "__main__":
    command()
