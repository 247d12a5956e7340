"""Predict ranges of the rows, in this process or in one process per range."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.data import suggested_max_num_workers
from lightning.pytorch.utilities import rank_zero_only

from fusion_pl.data.base import MAX_WORKERS
from fusion_pl.prediction.counts import Counts
from fusion_pl.prediction.partial import PartialOutput
from fusion_pl.prediction.rows import RowPredictor, make_key
from fusion_pl.prediction.source import Source
from fusion_pl.processes import block_sigint, call_pickled, share_hardware
from fusion_pl.types import UserError

Show = Callable[[int], None]  # is called with the number of predicted rows


def split_rows(config: Namespace, source: Source) -> list[slice]:
    """Return the range of rows of each process of ``--trainer.devices``.

    Raises:
        UserError: if the data or the device is not for several processes.
    """
    number = config.trainer.devices
    if number < 1:
        raise UserError(f"--trainer.devices is {number}, expected a number of processes of at least 1")
    if number == 1:
        return [slice(0, None)]
    if source.num_rows is None:
        raise UserError(
            f"--trainer.devices {number} divides the rows, whose number {type(source.data).__name__} does not know: "
            "leave it out, or store the rows first (HubData)"
        )
    num_gpus = torch.cuda.device_count()
    if config.device.startswith("cuda:"):
        raise UserError(f"--device {config.device} is one GPU: give --device cuda, or leave out --trainer.devices")
    if num_gpus and config.device in {"auto", "cuda"} and number > num_gpus:
        raise UserError(f"--trainer.devices is {number}, but this machine has {num_gpus} GPUs: give at most as many")
    number = max(1, min(number, source.num_rows))
    bounds = [source.num_rows * index // number for index in range(number + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def predict_ranges(
    config: Namespace, predictor: RowPredictor, output: PartialOutput, ranges: Sequence[slice], show: Show
) -> Counts:
    """Predict ranges of rows into the partial files of an output, and return the counts of all rows.

    Several ranges have one process each; a range that is predicted already needs none.
    """
    if len(ranges) == 1:
        return predictor.write(ranges[0], output.part(0), predictor.output_format(output.output), show)
    processes: dict[Any, tuple[int, BaseProcess]] = {}
    parts = [output.part(number) for number in range(len(ranges))]
    rows, counts = [part.rows for part in parts], [part.counts for part in parts]
    show(sum(rows))
    try:
        for number, part in enumerate(parts):
            if part.rows == ranges[number].stop - ranges[number].start:
                part.remove_rest()
            else:
                started, process = _start(config, output, ranges, number)
                processes[started] = number, process
        connection: Any
        while processes:
            for connection in wait(list(processes)):
                number, process = processes[connection]
                received = _receive(connection, process, f"process {number + 1} of {len(ranges)}")
                if isinstance(received, Counts):
                    counts[number] = received
                    del processes[connection]
                else:
                    rows[number] = received
                    show(sum(rows))
    finally:
        for _, process in processes.values():
            process.kill()
            process.join()
    return Counts.sum(counts)


def _receive(connection: Connection, process: BaseProcess, name: str) -> int | Counts:
    """Return what a process has sent: its number of rows, or its counts when it has finished."""
    try:
        received: int | Counts | Exception = connection.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        raise UserError(
            f"{name} ended with exit code {process.exitcode}, perhaps because the memory is full: the same command "
            "continues with the rows that are left"
        ) from None
    if isinstance(received, Exception):
        raise received
    return received


def _start(
    config: Namespace, output: PartialOutput, ranges: Sequence[slice], number: int
) -> tuple[Connection, BaseProcess]:
    context: Any = multiprocessing.get_context("spawn")  # a forked process could not use a GPU that this one has used
    connection, child_connection = context.Pipe()
    function = pickle.dumps(partial(_predict, config, output, ranges, number))
    process = context.Process(target=call_pickled, args=(function, child_connection))
    with block_sigint():
        process.start()
    child_connection.close()  # so that the connection closes when the process ends
    return connection, process


def _predict(
    config: Namespace, output: PartialOutput, ranges: Sequence[slice], number: int, connection: Connection
) -> None:
    """Predict one of the ranges of rows in a new process, and send the number of rows, and the counts."""
    share_hardware(number, len(ranges), use_gpus=config.device != "cpu")
    rank_zero_only.rank = number + 1  # type: ignore[attr-defined]  # the parent process has told what there is to tell
    options = config.data.init_args
    if "num_workers" in options and options.num_workers is None:
        options.num_workers = min(MAX_WORKERS, suggested_max_num_workers(len(ranges)))
    try:
        predictor = RowPredictor(config)
        output.check_unchanged(make_key(config, predictor))
        output_format = predictor.output_format(output.output)
        connection.send(predictor.write(ranges[number], output.part(number), output_format, connection.send))
    except Exception as error:  # the parent process raises it
        connection.send(_portable(error))


def _portable(error: Exception) -> Exception:
    """Return an error with its traceback as a note, or with another class if its own cannot be sent to a process."""
    note = "".join(traceback.format_exception(error))
    error.add_note(note)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of the class of the error
        return RuntimeError(note)
    return error
