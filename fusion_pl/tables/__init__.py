"""Tables of samples: reading, checks of cells, labels and paths, and splits."""
