"""The command as a user types it, on a small manifest, with a head of the user's own that fails."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fusion_pl.analysis.compare import compare_command
from fusion_pl.cli.run import guarded

HEADS = '''
import os
import signal
import time
from pathlib import Path

from fusion_pl.fusion import Mean


class Broken(Mean):
    """Cannot be used."""

    def forward(self, inputs):
        raise RuntimeError("no head for [cat] and [dog] of /data/[/b]/x.png\x1b[2J")


def meet(name, other, seconds):
    """Wait until the other one has been here as often."""
    times = len(list(Path().glob(f"{name}-*")))
    Path(f"{name}-{times}").touch()
    while not Path(f"{other}-{times}").exists() and seconds > 0:
        time.sleep(0.1)
        seconds -= 0.1


class Deadly(Mean):
    """Is killed, as the system does when memory runs out, while the other one runs beside it."""

    def forward(self, inputs):
        meet("deadly", "innocent", seconds=3)
        os.kill(os.getpid(), signal.SIGKILL)


class Innocent(Mean):
    """Is not finished when the other one is killed."""

    def __init__(self, dims, num_classes):
        super().__init__(dims, num_classes)
        self.met = False

    def forward(self, inputs):
        if not self.met:
            self.met = True
            meet("innocent", "deadly", seconds=20)
            time.sleep(1)
        return super().forward(inputs)


class Endless(Mean):
    """Says in which process it is, and never returns."""

    def forward(self, inputs):
        Path("process").write_text(str(os.getpid()))
        time.sleep(3600)


class Recording(Mean):
    """Writes down in which order it is given the samples."""

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
    """Return how to run the command in an empty folder, on a table of its own."""
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

    def _compare(*arguments, run=subprocess.run, **options):
        command = [sys.executable, "-m", "fusion_pl", "compare", "--config", "base.yaml", "--output", "out", *arguments]
        environment = os.environ | {
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "OMP_NUM_THREADS": "1",
        }
        kept = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return run(command, text=True, cwd=tmp_path, env=environment, **kept, **options)

    return _compare


def test_compares_goes_on_and_reports(compare, tmp_path):
    wanted = ["--fusions", "Mean,own_heads.Broken", "--seeds", "1", "--inputs", "each,all"]
    ran = compare(*wanted)
    assert ran.returncode == 0, ran.stderr
    said = " ".join(ran.stderr.split())
    assert "no head for [cat] and [dog] of /data/[/b]/x.png\\x1b[2J" in said  # no markup, nothing that a terminal obeys
    rows = results(tmp_path)
    assert len(rows) == 4  # two heads together, two inputs alone
    assert sorted(row["status"] for row in rows) == ["done", "done", "done", "failed"]
    check_report(tmp_path, rows)
    finished = tmp_path / "out/runs/Mean-text+image-0/result.json"
    found = json.loads(finished.read_text())
    hits = found["correct"].count("1") / len(found["correct"])
    assert hits == pytest.approx(found["test"]["test/accuracy"])  # counted here, and by torchmetrics
    assert found["subsets"]["text+image"] == pytest.approx(hits)
    assert found["flops"] > 0
    config = yaml.safe_load(finished.with_name("config.yaml").read_text())
    assert (config["cache"], config["cache_limit"]) == ("out/cache", 20)  # what compare keeps by itself has a bound
    before = finished.stat().st_mtime_ns
    runs = tmp_path / "out/runs"
    add(runs / "Mean-text+image-9", found | {"seed": 9, "config": other_part(found["config"], 0)})
    old = runs / "own_heads.Recording-text+image-0"
    add(old, {key: value for key, value in found.items() if key != "ids"})
    again = compare("--fusions", "Mean,own_heads.Recording", "--seeds", "2", "--inputs", "all")
    assert again.returncode == 0, again.stderr
    assert finished.stat().st_mtime_ns == before  # what is finished is not repeated
    rows = results(tmp_path)
    assert sorted({row["label"] for row in rows}) == [
        "Broken", "Mean", "Recording", "image alone", "text alone"
    ]  # another selection adds to the report  # fmt: skip
    assert len(rows) == 4 + 3
    said = (
        "Kept in runs/, and not in this report: 1 run of another configuration (Mean-text+image-9); 1 run of another "
        "version of fusion-pl, or damaged (own_heads.Recording-text+image-0)."
    )
    assert said in " ".join(again.stdout.split())
    assert "Mean-text+image-9" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "ids" not in json.loads((old / "result.json").read_text())  # kept, and the new one beside
    orders = [(tmp_path / f"order-{seed}").read_text().split() for seed in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
    assert len({row["test_samples"] for row in rows if row["ranked"] == "True"}) == 1

    table = tmp_path / "table.csv"
    table.write_text(table.read_text().replace("number 3,", "number three,"))
    changed = compare("--fusions", "Mean", "--seeds", "1", "--inputs", "all")
    assert changed.returncode == 0, changed.stderr
    assert finished.stat().st_mtime_ns == before
    assert len(list(runs.glob("Mean-text+image-0*/result.json"))) == 2
    assert [row["label"] for row in results(tmp_path)] == ["Mean"]
    assert "7 runs of another table (" in changed.stdout


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
    assert (image.split(" | ")[2], image.split(" | ")[6]) == ("10", "10")  # two of twelve test rows have no picture
    assert {row["label"]: row["ranked"] for row in rows}["image alone"] == "False"


def results(folder):
    with (folder / "out/results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def add(folder, content):
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(content))


def other_part(key, place):
    parts = key.split("-")
    parts[place] = "0" * len(parts[place])
    return "-".join(parts)


def test_of_two_runs_only_the_one_that_dies_is_blamed(compare, tmp_path):
    ran = compare("--fusions", "own_heads.Deadly,own_heads.Innocent", "--seeds", "1", "--inputs", "all", "--jobs", "2")
    assert ran.returncode == 0, ran.stderr
    rows = {row["fusion"]: row for row in results(tmp_path)}
    assert "its process died (killed by SIGKILL), and again with no other run beside it" in rows["Deadly"]["reason"]
    assert rows["Innocent"]["status"] == "done"
    assert len(list(tmp_path.glob("innocent-*"))) == 1  # it was not even disturbed


@pytest.mark.parametrize("how", ["killed", "Ctrl-C", "Ctrl-C at the start"])
def test_nothing_goes_on_after_the_command(compare, tmp_path, how):
    wanted = ["--fusions", "own_heads.Endless", "--seeds", "1", "--inputs", "all", "--data.num_workers", "2"]
    with compare(*wanted, run=subprocess.Popen, start_new_session=True) as ran:
        try:
            if how == "Ctrl-C at the start":  # the run's process is importing
                wait_until(lambda: any("spawn_main" in command_of(one) for one in processes_of(ran.pid)))
            else:
                wait_until((tmp_path / "process").is_file)
                assert len(processes_of(ran.pid)) >= 4  # the command, the run, its loader's workers
            if how == "killed":
                ran.kill()
            else:
                os.killpg(ran.pid, signal.SIGINT)  # what a terminal does
            wait_until(lambda: not processes_of(ran.pid))
            _, said = ran.communicate()
        finally:
            for process in processes_of(ran.pid):
                os.kill(process, signal.SIGKILL)
    if how != "killed":
        assert ran.returncode == 128 + signal.SIGINT
        assert "Stopped after 0 of 1 runs; repeat the command to go on" in said
        assert "Traceback" not in said


def command_of(process):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text()
    return ""


def processes_of(session):
    """Return the processes of a session that still run: those that ended and wait for their parent do not."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


def wait_until(reached, seconds=60):
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"waited {seconds} seconds"
        time.sleep(0.1)


def test_mistakes_are_one_sentence(compare, tmp_path, monkeypatch, capsys):
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
        given = ["--config", "base.yaml", "--output", "out", *arguments]
        assert guarded(lambda given=given: compare_command(given)) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert guarded(lambda: compare_command(["--config", "base.yaml", "--output", "file"])) == 2
    assert "--output: file is a file, expected a folder" in capsys.readouterr().err
    ran = compare("--config", "base.yaml")  # as a user types it
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "--config is given twice" in ran.stderr
