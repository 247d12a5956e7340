"""Items of a data set in order, from processes that may be killed."""

from __future__ import annotations

import os
import signal

import pytest
from torch.utils.data import Dataset, get_worker_info

from fusion_pl.data.workers import iterate_in_workers
from fusion_pl.types import UserError


class Squares(Dataset[int]):
    def __len__(self):
        return 100

    def __getitem__(self, index):
        return index**2


class Fatal(Squares):
    """The system kills the process that loads item 50, as it does when the memory is full."""

    def __getitem__(self, index):
        if index == 50 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return index**2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_items_come_in_order(num_workers):
    assert list(iterate_in_workers(Squares(), num_workers, "Squares")) == [index**2 for index in range(100)]


def test_a_killed_process_is_one_sentence():
    with pytest.raises(
        UserError, match=r"ended after .* of 100 files, perhaps because the memory is full: set data\.num"
    ):
        list(iterate_in_workers(Fatal(), 2, "Squares"))
