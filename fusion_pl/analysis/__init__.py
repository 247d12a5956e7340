"""Comparing heads: which fusion is best on the user's data, and how sure that is."""
