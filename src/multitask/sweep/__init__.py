"""Sweeps: many runs from one command, none of which harms another."""

import warnings

# The launchers' YAMLs in configs/hydra/launcher have the names that users know from their plugins, and are
# complete; Hydra merges the plugins' own with them and warns of it, in every process of a sweep.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
