"""Pictures of a comparison, each a function that returns a Matplotlib figure or None where it has no data."""
