"""The step within Lightning: a base class for one's own LightningModule."""
