"""The processes of a comparison."""

from __future__ import annotations

import os

from fusion_pl.analysis import workers


def test_each_process_gets_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(workers, "follow_parent", lambda: None)
    monkeypatch.setattr(workers.multiprocessing, "set_start_method", lambda *given, force: None)
    for number, gpu in ((0, "3"), (1, "5"), (2, "3")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
        workers._prepare(number, jobs=3)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == gpu
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    workers._prepare(0, jobs=1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"  # the rest of several processes would wait for each other
