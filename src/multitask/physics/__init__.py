"""Differential equations with known solutions, for networks that are trained on their residuals."""
