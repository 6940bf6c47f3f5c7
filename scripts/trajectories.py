"""Draw the trajectories of a toy problem's runs in one plot: python scripts/trajectories.py source=<sweep folder>."""

from multitask.commands.trajectories import main

if __name__ == "__main__":
    main()
