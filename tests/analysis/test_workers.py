"""The process pool of a comparison, with real processes."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal

import pytest
import torch

from fusion_pl.analysis.plan import Run
from fusion_pl.analysis.result import RunResult
from fusion_pl.analysis.workers import ProcessFailure, WorkerPool
from tests.commands import fork_spawned_processes


def job(run):
    """Do what the name of the input asks for; report the process in ``reason``."""
    action = run.inputs[0]
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "exit":
        os._exit(7)
    if action == "raise":
        raise OSError("disk full")
    state = {
        "process": os.getpid(),
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "threads": torch.get_num_threads(),
        "start_method": multiprocessing.get_start_method(),
        "sigint": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        "garbage_collection": gc.isenabled(),
        "frozen": gc.get_freeze_count(),
    }
    return RunResult(run.class_path, run.inputs, run.seed, "failed", json.dumps(state))


def make_run(action, seed=0):
    return Run("fusion_pl.fusion.Mean", (action,), seed, "key", {})


def outcomes(pool, runs):
    """Start runs at the same time; return run -> its outcome."""
    for run in runs:
        pool.start(run)
    ended = {}
    while len(ended) < len(runs):
        assert pool.busy
        ended |= dict(pool.wait(seconds=60.0))
    return ended


def state(outcome):
    assert isinstance(outcome, RunResult)
    return json.loads(outcome.reason)


def test_each_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    runs = [make_run("report", seed) for seed in range(3)]
    with WorkerPool(job, size=3) as pool:
        first = [state(outcome) for outcome in outcomes(pool, runs).values()]
        assert pool.num_free_processes == 3
        (again,) = outcomes(pool, runs[:1]).values()
    assert sorted(one["gpu"] for one in first) == [
        "3",
        "3",
        "5",
    ]  # three processes on two GPUs
    assert len({one["process"] for one in first}) == 3
    assert state(again)["process"] in {one["process"] for one in first}  # processes are reused
    assert all(one["sigint"] for one in first)  # Ctrl-C is handled by the parent
    assert all(one["garbage_collection"] and one["frozen"] > 0 for one in first)  # disabled during the imports only
    assert {one["start_method"] for one in first} == {multiprocessing.get_start_method()}


def test_a_process_that_dies_does_not_stop_the_others(monkeypatch):
    fork_spawned_processes(monkeypatch)
    kill, leave, report = make_run("kill"), make_run("exit"), make_run("report")
    with WorkerPool(job, size=3) as pool:
        ended = outcomes(pool, [kill, leave, report])
        assert state(ended.pop(report))
        assert ended == {kill: ProcessFailure("killed by SIGKILL"), leave: ProcessFailure("exit code 7")}
        assert state(outcomes(pool, [make_run("report", 1)])[make_run("report", 1)])  # the pool is still usable
        with pytest.raises(OSError, match="disk full"):
            outcomes(pool, [make_run("raise")])


@pytest.mark.skipif(torch.cuda.is_available(), reason="cores are shared on machines without a GPU only")
def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # as on a machine with GPUs that are not to be used
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with WorkerPool(job, size=2) as pool:
        (outcome,) = outcomes(pool, [make_run("report")]).values()
    assert state(outcome)["threads"] == max(1, len(os.sched_getaffinity(0)) // 2)
    with pytest.raises(ProcessLookupError):  # killed by the end of the context
        os.kill(state(outcome)["process"], 0)
