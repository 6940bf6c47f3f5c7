"""Compares runs from their record files, without importing training code."""
