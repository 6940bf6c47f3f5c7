"""Build a comparison's W&B workspace: python scripts/dashboard.py project=<project> source=<sweep folder>.

The keys are explained in configs/dashboard.yaml.
"""

from multitask.commands.dashboard import main

if __name__ == "__main__":
    main()
