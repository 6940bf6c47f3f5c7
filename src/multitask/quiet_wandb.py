"""Import this before wandb, which reads the environment then: no chatter, and offline no call home."""

import os

os.environ.setdefault("WANDB_SILENT", "true")
# Without it, even an offline run reports errors to W&B.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
