"""One run from its config to its results; the scripts call this and nothing else."""
