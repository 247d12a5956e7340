"""The sections about corrupted and missing inputs, of a model that reads one of its two inputs."""

from __future__ import annotations

import csv
import re
import signal
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binom

from fusion_pl.evaluate import scores, sweeps
from tests.commands import run_command
from tests.evaluate.models import TASKS, WORDS, evaluate, fit_model, results, write_table

CHANCE = 1 / 3


def write_planted_table(path, rows=480):
    """The first text names the class, the second one nothing."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second", "label", "split"])
        for row in range(rows):
            label = int(rng.integers(3))
            split = ("train", "val", "test", "test")[row % 4]
            writer.writerow([f"{WORDS[label]} {rng.integers(40)}", f"word {rng.integers(40)}", "xyz"[label], split])
    return path


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """For speed, the intervals of the section of metrics have few resamples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "NUM_RESAMPLES", 100)
        yield


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The table, the checkpoint, and an evaluation of all sweeps, with the checkpoint itself as baseline."""
    folder = tmp_path_factory.mktemp("planted")
    table = write_planted_table(folder / "rows.csv")
    checkpoint = fit_model(table, folder)
    arguments = ["--sweeps", "true", "--against", checkpoint]
    assert evaluate(checkpoint, table, *arguments, output=folder / "out") == 0
    return table, checkpoint, folder / "out"


def test_severity_0_is_the_metric_of_the_page(planted):
    found = results(planted[2])
    clean = found["metrics"]["accuracy"]["value"]
    assert clean > 0.95
    for curves in found["corrupted_inputs"]["inputs"].values():
        for curve in curves.values():
            assert curve["values"][0] == clean
            assert len(curve["values"]) == len(curve["intervals"]) == 6
    assert found["missing_inputs"]["subsets"]["first+second"]["value"] == clean
    assert [curve["values"][0] for curve in found["missing_inputs"]["rates"]] == [clean] * 3


def test_only_the_input_that_is_read_has_falling_curves(planted):
    inputs = results(planted[2])["corrupted_inputs"]["inputs"]
    dropped = inputs["first"]["dropped words"]["values"]
    assert dropped[0] - dropped[5] > 0.1
    for curve in inputs["second"].values():
        assert max(curve["values"]) - min(curve["values"]) < 0.05
    sentence = f"Most harmful is dropped words of first: accuracy {dropped[0]:.3f} without, {dropped[5]:.3f} with"
    assert sentence in (planted[2] / "report.html").read_text()


def test_without_its_only_input_the_model_falls_to_chance(planted):
    missing = results(planted[2])["missing_inputs"]
    alone = missing["subsets"]["second"]
    low, high = binom.interval(0.999, alone["samples"], CHANCE)
    assert low <= alone["value"] * alone["samples"] <= high
    assert missing["subsets"]["first"]["value"] > 0.95
    curves = {curve["input"]: np.array(curve["values"]) for curve in missing["rates"]}
    clean, rates = curves["first"][0], np.array(missing["rates"][0]["rates"])
    expected = (1 - rates) * clean + rates * alone["value"]
    assert np.abs(curves["first"] - expected).max() < 0.1
    assert curves["second"].min() > 0.95
    both = curves[None]  # of two inputs that are both drawn as missing, one is kept at random
    lost = rates * (1 - rates) + rates**2 / 2
    assert np.abs(both - ((1 - lost) * clean + lost * alone["value"])).max() < 0.1


def test_intervals_are_those_of_the_metric(planted):
    missing = results(planted[2])["missing_inputs"]
    for estimate in missing["subsets"].values():
        low, high = estimate["interval"]
        assert low < high
        assert low <= estimate["value"] <= high
    width = np.diff(missing["subsets"]["second"]["interval"])[0]
    assert width == pytest.approx(2 * 1.96 * (CHANCE * (1 - CHANCE) / 240) ** 0.5, rel=0.1)


def test_robustness_is_the_area_under_the_curve_and_0_against_the_same_model(planted):
    content = results(planted[2])["corrupted_inputs"]
    assert (content["metric"], content["rows"]) == ("accuracy", 240)
    for curves in content["inputs"].values():
        for curve in curves.values():
            values = curve["values"]
            area = sum((a + b) / 2 for a, b in pairwise(values)) / 5
            assert curve["relative_robustness"] == pytest.approx(area)
            assert curve["effective_robustness"] == pytest.approx(0, abs=1e-9)
            assert curve["baseline"] == values
            assert curve["effective_interval"] == pytest.approx([0, 0], abs=1e-9)
            low, high = curve["relative_interval"]
            assert low - 1e-9 <= area <= high + 1e-9


def test_the_page_has_both_sections_with_pictures(planted):
    page, text = ((planted[2] / f"report.{kind}").read_text() for kind in ("html", "md"))
    for content in (page, text):
        assert "Corrupted inputs" in content
        assert "Missing inputs" in content
        assert "All 240 rows." in content
        assert "share of the characters" in content
    assert {path.name for path in (planted[2] / "pictures").iterdir()} >= {
        "corruptions_0.svg",
        "corruptions_1.svg",
        "missing_inputs.svg",
    }


def test_a_part_of_the_sweeps_on_some_of_the_rows(planted, tmp_path):
    table, checkpoint, _ = planted
    arguments = ["--sweeps", "first,dropped words", "--max_samples", "50"]
    assert evaluate(checkpoint, table, *arguments, output=tmp_path) == 0
    content = results(tmp_path)["corrupted_inputs"]
    assert {name: list(curves) for name, curves in content["inputs"].items()} == {"first": ["dropped words"]}
    assert content["rows"] == content["inputs"]["first"]["dropped words"]["rows"] == 50
    assert content["inputs"]["first"]["dropped words"]["effective_robustness"] is None
    page = (tmp_path / "report.html").read_text()
    assert "50 of the 240 rows, drawn with a fixed seed (--max_samples 50)." in page
    assert "give a second checkpoint with --against" in page
    assert evaluate(checkpoint, table, "--sweeps", "false", output=tmp_path) == 0
    assert "corrupted_inputs" not in results(tmp_path)


KILLED = """
import os
import signal

from fusion_pl.__main__ import main
from fusion_pl.evaluate.parts import Parts

store = Parts.store


def store_or_kill(self, name, arrays):
    if name == "sweeps-00002":
        os.kill(os.getpid(), signal.SIGKILL)
    store(self, name, arrays)


Parts.store = store_or_kill
main()
"""


def test_a_command_that_is_killed_in_a_sweep_goes_on_after_the_last_batch(planted, tmp_path, monkeypatch):
    _, checkpoint, _ = planted
    table = write_planted_table(tmp_path / "rows.csv", rows=48)
    sweep, total = ["--sweeps", "typos", "--data.batch_size", "4"], 24 // 4
    words = ["--ckpt_path", checkpoint, "--data.manifest", table, "--output", tmp_path / "out", "--device", "cpu"]
    ran = run_command("evaluate", *words, "--data.num_workers", "0", *sweep, code=KILLED)
    kept = len(list((tmp_path / "out/partial").glob("sweeps-*.npz")))
    assert (ran.returncode, kept) == (-signal.SIGKILL, 2), ran.stderr
    encode, encoded = sweeps.BatchScores.encode, []
    monkeypatch.setattr(
        sweeps.BatchScores, "encode", lambda *arguments: encoded.append(arguments) or encode(*arguments)
    )
    assert evaluate(checkpoint, table, *sweep, output=tmp_path / "out") == 0
    assert len(encoded) == total - kept
    assert not (tmp_path / "out/partial").exists()
    assert evaluate(checkpoint, table, *sweep, output=tmp_path / "whole") == 0
    assert results(tmp_path / "out") == results(tmp_path / "whole")


@pytest.mark.parametrize("task", ["Ordinal", "MultiLabel"])
def test_other_tasks_have_the_metric_that_chose_their_checkpoint(task, tmp_path):
    table = write_table(tmp_path / "rows.csv", task, rows=200)
    checkpoint = fit_model(table, tmp_path, task, epochs=4)
    assert evaluate(checkpoint, table, "--sweeps", "typos", output=tmp_path / "out") == 0
    found = results(tmp_path / "out")
    metric = TASKS[task].monitor
    subset = found["missing_inputs"]["subsets"]["first+second"]
    assert found["missing_inputs"]["metric"] == metric
    assert subset["value"] == pytest.approx(found["metrics"][metric]["value"], abs=1e-6)
    assert subset["interval"] == pytest.approx(found["metrics"][metric]["interval"], abs=0.08)
    curves = [curve for curves in found["corrupted_inputs"]["inputs"].values() for curve in curves.values()]
    has_intervals = any(interval is not None for curve in curves for interval in curve["intervals"])
    caption = f"{metric.replace('_', ' ').capitalize()} over corruptions of first"
    captions = re.findall(rf"<figcaption>({caption}[^<]*)", (tmp_path / "out/report.html").read_text())
    assert captions == [caption + ", with 95 % intervals" * has_intervals]
    assert has_intervals == (task == "Ordinal")


def test_a_model_of_one_input_has_no_section_about_missing_inputs(planted, tmp_path):
    checkpoint = fit_model(planted[0], tmp_path, epochs=1, inputs=("second",))
    arguments = ["--sweeps", "typos", "--max_samples", "20", "--against", planted[1]]
    assert evaluate(checkpoint, planted[0], *arguments, output=tmp_path / "out") == 0
    found = results(tmp_path / "out")
    assert "missing_inputs" not in found
    curve = found["corrupted_inputs"]["inputs"]["second"]["typos"]
    assert curve["baseline"][0] > 0.9, "the second checkpoint reads the first text, too"
    assert curve["effective_interval"] is not None


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--sweeps", "first,typo"], "--sweeps: there is no input or corruption 'typo'; did you mean typos"),
        (["--sweeps", "true", "--max_samples", "0"], "--max_samples is 0, expected a number of rows of at least 1"),
    ],
)
def test_mistakes_are_one_sentence(arguments, match, planted, tmp_path, capsys):
    table, checkpoint, _ = planted
    assert evaluate(checkpoint, table, *arguments, output=tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert re.search(match, message)
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()
