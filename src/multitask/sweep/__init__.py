"""Sweeps: many runs from one command, isolated from one another's failures.

What cannot work raises :class:`~multitask.errors.ConfigError` before the first job starts.
"""

import warnings

# The YAMLs in configs/hydra/launcher are named after the plugins' and are complete. Hydra merges the plugins' configs
# into them, and would warn about it in every process of a sweep.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
