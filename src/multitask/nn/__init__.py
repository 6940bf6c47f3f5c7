"""Trunks and heads that no library gives."""
