"""Forked processes that are known to run."""

from __future__ import annotations

import os
from multiprocessing.connection import wait
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.popen_fork import Popen
from typing import Any

from fusion_pl.types import UserError

START_SECONDS = 30  # a process that has not run any Python code after this time is replaced
START_ATTEMPTS = 3


class _CheckedPopen(Popen):
    def _launch(self, process_obj: Any) -> None:
        for _ in range(START_ATTEMPTS):
            self.returncode = None
            receiver, process_obj.started = os.pipe()
            super()._launch(process_obj)  # type: ignore[misc]  # not in the stubs
            os.close(process_obj.started)
            has_started = wait([receiver], START_SECONDS)  # or has ended, which the loader notices
            os.close(receiver)
            if has_started:
                return
            self.kill()
            self.wait()
            self.finalizer()  # type: ignore[misc]  # None in the stubs
        raise UserError(
            f"a process that opens files did not start within {START_SECONDS} seconds, {START_ATTEMPTS} times: open "
            "the files in the main process with --data.num_workers 0"
        )


class _CheckedProcess(ForkProcess):
    started: int  # the pipe's end to which the new process writes

    @staticmethod
    def _Popen(process_obj: Any) -> _CheckedPopen:  # noqa: N802 - the name in multiprocessing
        return _CheckedPopen(process_obj)

    def run(self) -> None:
        os.write(self.started, b".")
        os.close(self.started)
        super().run()


class CheckedForkContext(ForkContext):
    """Context of processes that are forked again if they do not start to run.

    A fork copies the locks of all threads, but only one of the threads. If another thread holds a lock of a library at
    this moment, the code that the library runs in each new process waits for it without end, and so would the loader.
    """

    Process = _CheckedProcess
