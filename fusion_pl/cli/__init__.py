"""The command ``fusion-pl``: its options, help and messages, and how it builds and executes a run."""
