"""Hydra sweepers: Hydra takes plugins from the package ``hydra_plugins`` alone."""
