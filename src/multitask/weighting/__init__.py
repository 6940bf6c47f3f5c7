"""The combiners: pure functions of losses, Gramian or Jacobian; they know nothing of Lightning."""
