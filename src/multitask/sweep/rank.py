"""The rank of this process in its run."""

import os

# Set by torchrun, by Slurm and by Lightning for the processes that it starts.
_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")


def is_first() -> bool:
    """Return whether this process is a run's first or only one."""
    return not any(int(os.environ.get(name, 0)) for name in _RANKS)
