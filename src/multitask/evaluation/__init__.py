"""Comparison of runs: reads records from files, never imports training code."""
