"""Go through a data set once, in parallel processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sized
from typing import Any, TypeVar, cast

from rich import get_console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from fusion_pl.processes import init_worker
from fusion_pl.types import UserError

T = TypeVar("T")
BAR_MIN_ITEMS = 1000  # fewer items are loaded without a progress bar
BATCH_SIZE = 16  # items per message from a worker


def worker_options(num_workers: int) -> dict[str, Any]:
    """Return the arguments of a ``DataLoader`` that concern its worker processes."""
    context = None
    if num_workers and multiprocessing.get_start_method() == "fork":
        from fusion_pl.data.checked_fork import CheckedForkContext  # Windows has no fork

        context = CheckedForkContext()
    return {"num_workers": num_workers, "worker_init_fn": init_worker, "multiprocessing_context": context}


def iterate_in_workers(dataset: Dataset[T], num_workers: int, title: str) -> Iterator[T]:
    """Yield all items of a data set in order; show a progress bar if there are many.

    Raises:
        UserError: if a process was ended from outside, as the system does when the memory is full.
    """
    size = len(cast(Sized, dataset))
    loader = DataLoader(dataset, BATCH_SIZE, collate_fn=list, **worker_options(num_workers))
    bar = track(loader, title, console=get_console(), transient=True, disable=size < BAR_MIN_ITEMS)
    done = 0
    try:
        for batch in bar:
            yield from batch
            done += len(batch)
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise UserError(
            f"a process that opened files was ended after {done} of {size} files, perhaps because the memory is full: "
            "set data.num_workers to a smaller number (with 0, the error is shown)"
        ) from error
