"""Keeps loggers quiet and offline; import it before wandb, comet and mlflow, which read the environment on import."""

import os

_DEFAULTS = {
    "WANDB_SILENT": "true",
    # Without these, errors and statistics of use are sent even by runs that are offline.
    "WANDB_ERROR_REPORTING": "false",
    "COMET_ERROR_TRACKING_ENABLE": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Comet lists the whole config at the end of a run.
    "COMET_LOGGING_CONSOLE": "ERROR",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
