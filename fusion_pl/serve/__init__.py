"""``fusion-pl serve``, which answers HTTP requests with the predictions of a checkpoint."""
