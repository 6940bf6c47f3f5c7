"""Compares runs from their record files, without importing training code.

Functions raise :class:`~multitask.evaluation.errors.ComparisonError` for a source, or a key of ``compare.yaml``, that
cannot be used; its message says what to change.
"""
