"""``fusion-pl predict``, which classifies the rows of a data set and writes the predictions to a file."""
