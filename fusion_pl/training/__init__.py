"""How a run goes: optimisation recipes and callbacks, one file each."""
