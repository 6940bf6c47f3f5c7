"""Environment for quiet and offline W&B runs; import it before wandb, which reads the environment on import."""

import os

os.environ.setdefault("WANDB_SILENT", "true")
# Otherwise even offline runs report errors to W&B.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
