"""Tasks: a head with its loss, metrics and target, or a loss without a head."""

from multitask.task.task import Task

__all__ = ["Task"]
