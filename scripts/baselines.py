"""Record single-task baselines: python scripts/baselines.py source=<sweep folder>."""

from multitask.commands.baselines import main

if __name__ == "__main__":
    main()
