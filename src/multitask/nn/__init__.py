"""Trunks and heads that no library provides."""
