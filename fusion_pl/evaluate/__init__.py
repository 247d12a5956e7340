"""``fusion-pl evaluate``: one page about a checkpoint."""
