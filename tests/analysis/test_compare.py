"""The command as a user runs it, on a small manifest, with user-defined heads that fail."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml

from fusion_pl.analysis.compare import compare_command
from fusion_pl.cli.run import run, run_reporting_errors
from tests.commands import Command, fork_spawned_processes, run_command

HEADS = '''
import os
import signal
import time
from pathlib import Path

from fusion_pl.fusion import Mean


class Broken(Mean):
    """Fail in the forward pass."""

    def forward(self, inputs):
        raise RuntimeError("no head for [cat] and [dog] of /data/[/b]/x.png\x1b[2J")


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


class Deadly(Mean):
    """Killed, as by the system when memory runs out, the first time while the other run is active."""

    def forward(self, inputs):
        if not os.path.islink("deadly"):
            os.symlink(str(os.getpid()), "deadly")
            wait_until(Path("innocent-0").exists)
        os.kill(os.getpid(), signal.SIGKILL)


class Innocent(Mean):
    """Still active when the command has seen that the other run was killed."""

    def __init__(self, dims, num_classes):
        super().__init__(dims, num_classes)
        self.is_first = True

    def forward(self, inputs):
        if self.is_first:
            self.is_first = False
            Path(f"innocent-{len(list(Path().glob('innocent-*')))}").touch()
            wait_until(lambda: os.path.islink("deadly"))
            wait_until(lambda: not is_running(int(os.readlink("deadly"))))
        return super().forward(inputs)


class Endless(Mean):
    """Write the id of the process, and never return."""

    def forward(self, inputs):
        Path("process").write_text(str(os.getpid()))
        time.sleep(3600)


class Recording(Mean):
    """Write the order of the samples."""

    def loss(self, fused, batch, cross_entropy):
        if self.training:
            with open("order-" + os.environ["PL_GLOBAL_SEED"], "a") as file:
                file.write(" ".join(batch.ids) + " ")
        return super().loss(fused, batch, cross_entropy)
'''


def encoder(name, **init_args):
    return {"class_path": f"fusion_pl.encoders.{name}", "init_args": init_args}


@pytest.fixture
def compare(manifest, tmp_path):
    """Return a function that runs the command in a new process and an empty folder, or only starts it."""
    (tmp_path / "table.csv").write_bytes(manifest.read_bytes())
    base = {
        "model": {
            "encoders": {"text": encoder("TinyText", dim=8), "image": encoder("TinyImage", dim=16, image_size=16)},
            "fusion": {"class_path": "fusion_pl.fusion.Mean"},
        },
        "data": {
            "class_path": "fusion_pl.data.ManifestData",
            "init_args": {
                "manifest": "table.csv",
                "root": str(manifest.parent),
                "batch_size": 5,
                "num_workers": 0,
            },
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base, sort_keys=False))
    (tmp_path / "own_heads.py").write_text(HEADS)

    def _compare(*arguments, wait=True):
        command = ["compare", "--config", "base.yaml", "--output", "out", *arguments]
        search = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        if wait:
            return run_command(*command, folder=tmp_path, environment=search)
        return Command(command, [tmp_path / "stdout", tmp_path / "stderr"], tmp_path, search)

    return _compare


@pytest.fixture
def compare_here(compare, tmp_path, monkeypatch, capfd):
    """Return a function that runs the command in this process, in the same folder, and returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "argv", sys.argv)
    fork_spawned_processes(monkeypatch)

    def _compare_here(*arguments):
        capfd.readouterr()
        command = ["--config", "base.yaml", "--output", "out", *arguments]
        code = run_reporting_errors(lambda: compare_command(command))
        printed = capfd.readouterr()
        assert code == 0, printed.err
        return printed.out

    yield _compare_here
    sys.modules.pop("own_heads", None)


def test_compares_resumes_and_reports(compare, compare_here, tmp_path):
    arguments = ["--fusions", "Mean,own_heads.Broken", "--seeds", "1", "--inputs", "each,all"]
    ran = compare(*arguments)
    assert ran.returncode == 0, ran.stderr
    log = " ".join(ran.stderr.split())
    assert "no head for [cat] and [dog] of /data/[/b]/x.png\\x1b[2J" in log  # no markup, no escape sequences
    rows = results(tmp_path)
    assert len(rows) == 4  # two heads on all inputs, Concat on each input
    assert sorted(row["status"] for row in rows) == ["done", "done", "done", "failed"]
    check_report(tmp_path, rows)
    check_console(ran.stdout, rows)
    finished = tmp_path / "out/runs/Mean-text+image-0/result.json"
    result = json.loads(finished.read_text())
    accuracy = result["correct"].count("1") / len(result["correct"])
    assert accuracy == pytest.approx(result["test"]["test/accuracy"])  # counted here, and by torchmetrics
    assert result["subsets"]["text+image"] == pytest.approx(accuracy)
    assert result["flops"] > 0
    config = yaml.safe_load(finished.with_name("config.yaml").read_text())
    assert (config["cache"], config["cache_limit"]) == ("out/cache", 20)  # the default cache has a limit
    before = finished.stat().st_mtime_ns
    runs = tmp_path / "out/runs"
    add(runs / "Mean-text+image-9", result | {"seed": 9, "key": change_part(result["key"], 0)})
    old = runs / "own_heads.Recording-text+image-0"
    add(old, {key: value for key, value in result.items() if key != "ids"})
    again = compare_here("--fusions", "Mean,own_heads.Recording", "--seeds", "2", "--inputs", "all")
    assert finished.stat().st_mtime_ns == before  # finished runs are not repeated
    rows = results(tmp_path)
    assert sorted({row["label"] for row in rows}) == [
        "Broken", "Mean", "Recording", "image alone", "text alone"
    ]  # other heads are added to the report  # fmt: skip
    assert len(rows) == 4 + 3
    note = (
        "Kept in runs/, and not in this report: 1 run of another configuration (Mean-text+image-9); 1 run of another "
        "version of fusion-pl, or damaged (own_heads.Recording-text+image-0)."
    )
    assert note in " ".join(again.split())
    assert "Mean-text+image-9" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "ids" not in json.loads((old / "result.json").read_text())  # not overwritten
    orders = [(tmp_path / f"order-{seed}").read_text().split() for seed in (0, 1)]
    orders = [order[:48] for order in orders]  # two epochs; the other ids are of steps whose time is measured
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
    assert len({row["test_samples"] for row in rows if row["ranked"] == "True"}) == 1

    command, row = check_console(again, rows)
    assert repeated_accuracy(command, tmp_path) == pytest.approx(float(row["validation"]))

    table = tmp_path / "table.csv"
    table.write_text(table.read_text().replace("number 3,", "number three,"))
    changed = compare_here("--fusions", "Mean", "--seeds", "1", "--inputs", "all")
    assert finished.stat().st_mtime_ns == before
    assert len(list(runs.glob("Mean-text+image-0*/result.json"))) == 2
    assert [row["label"] for row in results(tmp_path)] == ["Mean"]
    assert "7 runs of another table (" in changed


def check_report(tmp_path, rows):
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    report = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert "no head for [cat] and [dog] of /data/[/b]/x.png" in page
    assert "no head for [cat] and [dog] of /data/[/b]/x.png" in report.replace("\\", "")  # escaped for Markdown
    sections = {part.partition("\n")[0]: part for part in report.split("\n## ")}
    assert re.findall(r"^\| \**(\w+ alone|Mean)", sections["Results"], re.MULTILINE) in (
        ["Mean", "text alone"],
        ["text alone", "Mean"],
    )
    (image,) = re.findall(r"^\| image alone.*", sections["Measured on other samples"], re.MULTILINE)
    assert (image.split(" | ")[2], image.split(" | ")[6]) == ("10", "10")  # two of twelve test rows have no image
    assert {row["label"]: row["ranked"] for row in rows}["image alone"] == "False"


def check_console(stdout, rows):
    """Check the last lines, and return the command in them with the row that it repeats."""
    best_line, command_line, report_line = stdout.splitlines()[-3:]
    assert report_line == "Report: out/report.html, out/report.md, out/results.csv"
    ranked = [row for row in rows if row["ranked"] == "True"]
    validation = {
        label: mean(float(row["validation"]) for row in ranked if row["label"] == label)
        for label in {row["label"] for row in ranked}
    }
    found = re.fullmatch(
        r"Best on validation: (.+), test accuracy ([\d.]+)(?: ± ([\d.]+))? % "
        r"\((?:1 seed|mean ± sd over (\d+) seeds), n = 12 test samples\)",
        best_line,
    )
    assert found, best_line
    runs = [row for row in ranked if row["label"] == found[1]]
    assert validation[found[1]] == max(validation.values())
    accuracies = [100 * float(row["test/accuracy"]) for row in runs]
    assert float(found[2]) == pytest.approx(mean(accuracies), abs=0.005)
    if len(runs) == 1:
        assert (found[3], found[4]) == (None, None)
    else:
        assert (float(found[3]), int(found[4])) == (pytest.approx(stdev(accuracies), abs=0.005), len(runs))
    program, *command = shlex.split(command_line.removeprefix("Train it: "))
    assert program == "fusion-pl"
    return command, next(row for row in runs if row["seed"] == "0")


def repeated_accuracy(arguments, folder):
    """Run ``fusion-pl`` and return its validation accuracy."""
    subcommand, *options = arguments
    assert run(subcommand, options) == 0
    (metrics,) = (folder / arguments[2]).parent.glob("**/version_1/metrics.json")
    return json.loads(metrics.read_text())["metrics"]["val/accuracy"]


def results(folder):
    with (folder / "out/results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def add(folder, content):
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(content))


def change_part(key, index):
    parts = key.split("-")
    parts[index] = "0" * len(parts[index])
    return "-".join(parts)


def test_a_run_whose_process_dies_is_repeated_without_other_runs(compare_here, tmp_path):
    compare_here("--fusions", "own_heads.Deadly,own_heads.Innocent", "--seeds", "1", "--inputs", "all", "--jobs", "2")
    rows = {row["fusion"]: row for row in results(tmp_path)}
    assert (
        "its process died (killed by SIGKILL), and died again while no other run was active" in rows["Deadly"]["reason"]
    )
    assert rows["Innocent"]["status"] == "done"
    assert len(list(tmp_path.glob("innocent-*"))) == 1  # not repeated


@pytest.mark.parametrize("stop", ["killed", "Ctrl-C", "Ctrl-C at the start"])
def test_no_process_survives_the_command(compare, tmp_path, stop):
    arguments = ["--fusions", "own_heads.Endless", "--seeds", "1", "--inputs", "all", "--data.num_workers", "2"]
    ran = compare(*arguments, wait=False)
    try:
        if stop == "Ctrl-C at the start":  # while the process of the run imports
            wait_until(lambda: any("spawn_main" in command_line(process) for process in processes_of(ran.pid)))
        else:
            wait_until((tmp_path / "process").is_file)
            assert len(processes_of(ran.pid)) >= 4  # the command, the run, its data loader workers
        if stop == "killed":
            ran.kill()
        else:
            os.killpg(ran.pid, signal.SIGINT)  # as a terminal does
        wait_until(lambda: not processes_of(ran.pid))
    finally:
        for process in processes_of(ran.pid):
            os.kill(process, signal.SIGKILL)
    if stop != "killed":
        errors = (tmp_path / "stderr").read_text()
        assert ran.wait() == 128 + signal.SIGINT
        assert "Stopped after 0 of 1 runs; repeat the command to resume" in errors
        assert "Traceback" not in errors


def command_line(process):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text()
    return ""


def processes_of(session):
    """Return the running processes of a session, without zombies."""
    processes = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session_id = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session_id) == session and state not in "ZX":
                processes.append(int(stat.parent.name))
    return processes


def wait_until(condition, seconds=180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} seconds"
        time.sleep(0.3)  # the processes of the machine are read each time


def test_mistakes_are_reported_in_one_sentence(compare, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for arguments, message in (
        (["--fusions", "Maen"], "there is no head 'Maen'; did you mean Mean?"),
        (["--seedz", "2"], "there is no option --seedz; did you mean --seeds?"),
        (["--fusion=Mean"], "there is no option --fusion; did you mean --fusions?"),
        (["--datas.batch_size", "2"], "there is no option --datas.batch_size"),
        (["--seeds", "0"], "expected at least 1"),
        (["--seeds", "many"], "argument --seeds: invalid int value: 'many'"),
        (["--config", "other.yaml"], "--config is given twice"),
        (["--seeds=2", "--seeds", "3"], "--seeds is given twice"),
        (["--output", "file"], "--output is given twice"),
        (["--trainer.devices", "2"], "trainer.devices asks for 2 devices: set it to 1"),
        (["--trainer.devices", "[0, 3]"], "trainer.devices asks for 2 devices: set it to 1"),
        (["--data.manifst", "x.csv"], "there is no option 'manifst'"),
    ):
        command = ["--config", "base.yaml", "--output", "out", *arguments]
        assert run_reporting_errors(lambda command=command: compare_command(command)) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert run_reporting_errors(lambda: compare_command(["--config", "base.yaml", "--output", "file"])) == 2
    assert "--output: file is a file, expected a folder" in capsys.readouterr().err
    ran = compare("--config", "base.yaml")  # in a new process
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "--config is given twice" in ran.stderr
