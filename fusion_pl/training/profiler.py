"""A profiler that costs no time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from lightning.pytorch.profilers import PassThroughProfiler


class NoProfiler(PassThroughProfiler):
    """Measure nothing: Lightning enters a profiler more than a hundred times per training step.

    The Trainer's default profiler runs a generator each time, which takes 2 to 3 % of the step of a small model.
    """

    _context = nullcontext("")

    def profile(self, action_name: str) -> AbstractContextManager[str]:  # type: ignore[override]
        """Return a context that does nothing."""
        del action_name
        return self._context
