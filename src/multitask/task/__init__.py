"""A task: head, loss, metrics and target; and losses that are none of a head."""

from multitask.task.task import Task

__all__ = ["Task"]
