"""Compare runs: `python scripts/compare.py source=<sweep folder | files | globs>`.

The keys are explained in configs/compare.yaml.
"""

from multitask.commands.compare import main

if __name__ == "__main__":
    main()
