"""One run from its config to its results: the entry points of the scripts."""
