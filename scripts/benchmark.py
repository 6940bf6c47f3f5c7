"""Measure speed: python scripts/benchmark.py (quick=true for a minute). Keys: configs/benchmark.yaml."""

from multitask.commands.benchmark import main

if __name__ == "__main__":
    main()
