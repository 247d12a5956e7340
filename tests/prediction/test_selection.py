"""``fusion-pl predict --select`` writes the rows that are most worth labelling."""

from __future__ import annotations

import csv
import errno
import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion_pl.cli.run import run
from fusion_pl.encoders import TinyText
from fusion_pl.fusion import Average, Concat
from fusion_pl.predict import Predictor
from fusion_pl.prediction import selection
from fusion_pl.prediction.counts import KnownLabels
from fusion_pl.prediction.formats import Csv
from fusion_pl.prediction.selection import Selector, dropout, k_centre_greedy
from fusion_pl.tables.read_table import read_table


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def with_dropout(save_model):
    torch.manual_seed(1)
    return save_model({"text": TinyText(dim=8)}, Concat)


def test_the_smallest_margins_are_chosen(folder, predict, capsys):
    assert predict() == 0
    rows = [row for row in read("p.csv") if not row["error"]]
    expected = sorted(rows, key=lambda row: abs(float(row["p(ham)"]) - float(row["p(spam)"])))[:5]
    assert predict("--select", "5", "--columns", "number", output="queue.csv") == 0
    assert "5 of 23 rows chosen by margin, most useful first, written to queue.csv" in capsys.readouterr().err
    found = read("queue.csv")
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    assert [row["number"] for row in found] == [row["id"].removeprefix("s") for row in expected]


def test_a_selection_that_could_not_be_written_begins_anew(folder, predict, monkeypatch):
    """After its rows are saved, they are not written a second time."""
    join = Csv.join

    def fail_once(self, parts, output):
        monkeypatch.setattr(Csv, "join", join)
        raise OSError(errno.ENOSPC, "No space left on device", str(output))

    monkeypatch.setattr(Csv, "join", fail_once)
    assert predict("--select", "5", output="queue.csv") == 2
    assert not Path("queue.csv").exists()
    assert predict("--select", "5", output="queue.csv") == 0
    ids = [row["id"] for row in read("queue.csv")]
    assert len(ids) == len(set(ids)) == 5


def test_labelled_rows_are_not_chosen(folder, text_checkpoint):
    """Fewer rows than asked for are chosen if fewer have no label."""
    predictor = Predictor.from_checkpoint(text_checkpoint, "cpu")
    is_labelled = np.array([True, False, True, False])
    for method in ("margin", "coreset"):
        selector = Selector(predictor, method, is_labelled)
        batches = [[{"text": "a"}, {"text": "b"}], [{"text": "c"}, {"text": "d"}]]
        assert sorted(selector.select(map(collate(predictor), batches), 3)) == [1, 3]


def collate(predictor):
    from fusion_pl.data.collate import Collate

    def call(samples):
        return Collate(predictor.processors)([predictor.open_sample("", sample) for sample in samples])

    return call


def test_bald_is_the_mutual_information_of_the_draws(folder, with_dropout):
    predictor = Predictor.from_checkpoint(with_dropout, "cpu")
    batch = collate(predictor)([{"text": f"thing {row}"} for row in range(6)])
    before = predictor.predict({"text": "a"}).probabilities
    selector = Selector(predictor, "bald", None)
    found = selector._bald(batch)
    torch.manual_seed(0)
    predictor.model.train()  # which has no other layer that training changes
    with torch.no_grad():
        draws = [predictor.model(batch).logits.double().softmax(-1).numpy() for _ in range(10)]
    predictor.model.eval()

    def entropy(p):
        return -(p * np.log(p)).sum(-1)

    expected = entropy(np.mean(draws, 0)) - np.mean([entropy(draw) for draw in draws], 0)
    assert found == pytest.approx(expected, abs=1e-6)
    assert min(found) > 0
    assert predictor.predict({"text": "a"}).probabilities == before


def test_dropout_of_a_frozen_encoder_stays_off(folder, with_dropout):
    predictor = Predictor.from_checkpoint(with_dropout, "cpu")
    encoder = predictor.model.encoders["text"].requires_grad_(False)
    with dropout(predictor.model):
        assert not any(module.training for module in encoder.modules())
        assert any(module.training for module in predictor.model.fusion.modules())
    assert not any(module.training for module in predictor.model.modules())


def test_rows_with_a_label_that_the_model_does_not_know_have_one(tmp_path, text_checkpoint):
    predictor = Predictor.from_checkpoint(text_checkpoint, "cpu")
    predictor.label = "label"
    (tmp_path / "rows.csv").write_text("text,label\na,ham\nb,\nc,eggs\nd,  \n")
    labels = KnownLabels.read(predictor, read_table(str(tmp_path / "rows.csv")), None)
    assert labels.is_known.tolist() == [True, False, False, False]
    assert labels.has_label.tolist() == [True, False, True, False]


@pytest.mark.parametrize("chunk_rows", [4096, 7, 1])
def test_k_centres_are_those_of_the_definition(chunk_rows, monkeypatch):
    monkeypatch.setattr(selection, "CHUNK_ROWS", chunk_rows)
    points = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    is_centre = np.zeros(40, bool)
    is_centre[[3, 8]] = True
    centres = [3, 8]
    for _ in range(5):
        distances = [min(np.linalg.norm(point - points[centre]) for centre in centres) for point in points]
        centres.append(int(np.argmax(distances)))
    assert k_centre_greedy(points, is_centre, 5) == centres[2:]
    first = int(np.linalg.norm(points - points.mean(0), axis=1).argmin())
    chosen = k_centre_greedy(points, np.zeros(40, bool), 3)
    assert chosen[0] == first
    pairs = itertools.combinations(chosen, 2)
    assert min(np.linalg.norm(points[one] - points[other]) for one, other in pairs) > 1
    assert sorted(k_centre_greedy(points, is_centre, 100)) == [row for row in range(40) if row not in (3, 8)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--select", "0"], "--select is 0, expected a number of rows of at least 1"),
        (["--select", "3", "--trainer.devices", "2"], "leave out --trainer.devices"),
        (["--select", "3", "--by", "bald"], "--by bald needs dropout, which the model does not have"),
        (["--select", "3", "--by", "coreset"], "--by coreset needs fused embeddings, which Average does not have"),
        (["--by", "margin"], "--by is how --select chooses rows: give --select too"),
        (["--select", "3", "--by", "entropy"], "by is entropy, expected one of"),
    ],
)
def test_what_cannot_work_is_refused(arguments, message, folder, save_model, capsys):
    checkpoint = save_model({"text": TinyText(dim=8, dropout=0.0)}, partial(Average, dropout=0.0))
    call = ["--ckpt_path", checkpoint, "--output", "q.csv", "--data.manifest", "rows.csv", "--data.num_workers", "0"]
    assert run("predict", [*call, *arguments]) == 2
    assert message in capsys.readouterr().err
