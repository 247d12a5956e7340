"""The command as a user types it, on a small manifest, with a head of the user's own that fails."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import fusion_pl.fusion
from fusion_pl.analysis import compare as compare_module
from fusion_pl.analysis.costs import costs_of, held
from fusion_pl.data import ManifestData
from fusion_pl.module import FusionClassifier

from ..conftest import CLASSES

BROKEN = '''
import os
import time
from pathlib import Path

from fusion_pl.fusion import Fusion

class Broken(Fusion):
    """Cannot be used."""

    def forward(self, inputs):
        raise RuntimeError("this head does not work")


class Deadly(Fusion):
    """Takes its process with it, as the system does when memory runs out."""

    def forward(self, inputs):
        os._exit(9)


class Endless(Fusion):
    """Says in which process it is, and never returns."""

    def forward(self, inputs):
        Path("process").write_text(str(os.getpid()))
        time.sleep(3600)
'''


def encoder(name, **init_args):
    return {"class_path": f"fusion_pl.encoders.{name}", "init_args": init_args}


@pytest.fixture
def compare(manifest, tmp_path):
    """Return how to run the command in an empty folder."""
    base = {
        "model": {
            "encoders": {"text": encoder("TinyText", dim=8), "image": encoder("TinyImage", dim=16, image_size=16)},
            "fusion": {"class_path": "fusion_pl.fusion.Mean"},
        },
        "data": {
            "class_path": "fusion_pl.data.ManifestData",
            "init_args": {"manifest": str(manifest), "batch_size": 5, "num_workers": 0},
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base, sort_keys=False))
    (tmp_path / "broken_heads.py").write_text(BROKEN)

    def _compare(*arguments, run=subprocess.run):
        command = [sys.executable, "-m", "fusion_pl", "compare", "--config", "base.yaml", "--output", "out", *arguments]
        environment = os.environ | {
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "OMP_NUM_THREADS": "1",
        }
        kept = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return run(command, text=True, cwd=tmp_path, env=environment, **kept)

    return _compare


def test_compares_goes_on_and_reports(compare, tmp_path):
    wanted = ["--fusions", "Mean,broken_heads.Broken", "--seeds", "1", "--inputs", "each,all"]
    ran = compare(*wanted)
    assert ran.returncode == 0, ran.stderr
    assert "this head does not work" in ran.stderr
    with (tmp_path / "out/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4  # two heads together, two inputs alone
    assert sorted(row["status"] for row in rows) == ["done", "done", "done", "failed"]
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    report = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert "this head does not work" in page
    assert "this head does not work" in report
    sections = {part.partition("\n")[0]: part for part in report.split("\n## ")}
    assert re.findall(r"^\| \**(\w+ alone|Mean)", sections["Results"], re.MULTILINE) in (
        ["Mean", "text alone"],
        ["text alone", "Mean"],
    )
    (image,) = re.findall(r"^\| image alone.*", sections["Measured on other samples"], re.MULTILINE)
    assert (image.split(" | ")[2], image.split(" | ")[6]) == ("10", "10")  # two of twelve test rows have no picture
    assert {row["label"]: row["ranked"] for row in rows}["image alone"] == "False"
    finished = tmp_path / "out/runs/Mean-text+image-0/result.json"
    found = json.loads(finished.read_text())
    hits = found["correct"].count("1") / len(found["correct"])
    assert hits == pytest.approx(found["test"]["test/accuracy"])  # counted here, and by torchmetrics
    assert found["subsets"]["text+image"] == pytest.approx(hits)
    assert found["flops"] > 0
    before = finished.stat().st_mtime_ns
    again = compare(*wanted)
    assert again.returncode == 0
    assert finished.stat().st_mtime_ns == before  # what is finished is not repeated


def test_a_process_that_dies_costs_its_own_run_only(compare, tmp_path):
    ran = compare("--fusions", "broken_heads.Deadly,Mean", "--seeds", "1", "--inputs", "all")
    assert ran.returncode == 0, ran.stderr
    with (tmp_path / "out/results.csv").open(newline="") as file:
        rows = {row["fusion"]: row for row in csv.DictReader(file)}
    assert "its process was killed, for want of memory perhaps" in rows["Deadly"]["reason"]
    assert rows["Mean"]["status"] == "done"


def test_nothing_goes_on_after_the_command_was_killed(compare, tmp_path):
    told = tmp_path / "process"
    with compare("--fusions", "broken_heads.Endless", "--seeds", "1", "--inputs", "all", run=subprocess.Popen) as ran:
        wait_until(lambda: told.is_file() and told.read_text())
        ran.kill()
    wait_until(lambda: not Path("/proc", told.read_text(), "exe").exists())  # a zombie, too, is gone


def wait_until(reached, seconds=120):
    for _ in range(10 * seconds):
        if reached():
            return
        time.sleep(0.1)
    pytest.fail(f"waited {seconds} seconds")


def test_mistakes_are_one_sentence(compare):
    for arguments, message in (
        (["--fusions", "Maen"], "there is no head 'Maen'; did you mean Mean?"),
        (["--seedz", "2"], "there is no option --seedz"),
        (["--seeds", "0"], "expected at least 1"),
        (["--seeds", "many"], "argument --seeds: invalid int value: 'many'"),
    ):
        ran = compare(*arguments)
        assert ran.returncode == 2
        assert message in ran.stderr
        assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("head", ["Concat", "Perceiver", "SelfAttention"])  # two hand views of parameters to a part
def test_the_costs_of_a_head_can_be_measured(encoders, manifest, head):
    model = FusionClassifier(encoders, getattr(fusion_pl.fusion, head), CLASSES)
    data = ManifestData(str(manifest), batch_size=5, num_workers=0)
    data.processors = model.processors
    data.setup("test")
    costs = costs_of(model, next(iter(data.test_dataloader())))
    assert costs["flops"] > 0
    assert costs["step_ms"] > 0


def test_memory_is_weights_gradients_and_what_the_backward_pass_needs():
    learns, frozen, batch = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4).requires_grad_(False), torch.randn(5, 6)
    both = torch.nn.ModuleList([learns, frozen])
    numbers = 2 * (6 * 4 + 4)  # the weights of both
    numbers += 6 * 4 + 4  # gradients of the one that learns
    numbers += 5 * 6 + 5 * 4  # the input, and what relu returned, which two steps need and which is there once
    assert [held(both, lambda: learns(batch).relu().square().sum()) for _ in range(2)] == [4 * numbers] * 2


def test_each_process_gets_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(compare_module, "follow_parent", lambda: None)
    monkeypatch.setattr(compare_module.multiprocessing, "set_start_method", lambda *given, force: None)
    turn, given = multiprocessing.get_context("spawn").Value("i", 0), []
    for _ in range(3):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
        compare_module._prepare(turn, jobs=3)
        given.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert given == ["3", "5", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    compare_module._prepare(multiprocessing.get_context("spawn").Value("i", 0), jobs=1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"  # the rest of several processes would wait for each other
