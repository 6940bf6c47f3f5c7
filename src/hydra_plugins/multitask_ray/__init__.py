"""A Hydra launcher: Hydra takes plugins from the package ``hydra_plugins`` alone."""
