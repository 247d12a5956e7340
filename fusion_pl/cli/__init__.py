"""The command ``fusion-pl``: what it takes, what it says, and how a run is put together."""
