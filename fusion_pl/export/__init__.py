"""``fusion-pl export``: files with which a model runs without a checkpoint."""
