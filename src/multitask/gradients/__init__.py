"""How Jacobians and Gramians of task losses are computed; knows nothing of weightings."""
