"""The one error this room raises for something the user can put right."""


class ComparisonError(ValueError):
    """A source or a key of compare.yaml that cannot be used; the message says what to change."""
