"""The error of a comparison that the user can fix."""


class ComparisonError(ValueError):
    """A source or a key of compare.yaml that cannot be used; the message says what to change."""
