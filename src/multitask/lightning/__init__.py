"""Lightning integration: a base class for LightningModules."""
