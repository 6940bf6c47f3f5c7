"""LightningDataModules, one data set per file; batches are mappings from ``inputs`` and target names to tensors."""
