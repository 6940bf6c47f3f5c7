"""Plots of a comparison: functions that return a Matplotlib figure, or None without data."""
