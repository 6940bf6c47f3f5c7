"""LightningDataModules, one data set a file; batches are mappings from ``inputs`` and target names to tensors."""
