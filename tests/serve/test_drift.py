"""``fusion-pl serve --reference``: drift is found in the quantity that drifts, from the requests of a client."""

from __future__ import annotations

import base64
import bisect
import csv
import json
import re
import sys

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from fusion_pl.cli.run import run
from fusion_pl.predict import Predictor
from fusion_pl.serve.app import create_app
from fusion_pl.serve.limits import Limits
from fusion_pl.serve.reference import Reference, confidence_histogram
from fusion_pl.serve.service import ServeOptions, Service
from tests.serve.conftest import png

WINDOW = 300
CLASSES = ("x", "<y>", "z & x")
QUANTITIES = (
    *("confidence", "predictions", "inputs"),
    *("distance of text", "distance of photo", "distance of text+photo"),
)
WORDS = ("red", "green", "blue")


def draw_rows(rng, count, label=None):
    """Rows of three classes: a word that is right in 80 %, missing in 20 %, and a picture that is right in 90 %."""
    rows = []
    for _ in range(count):
        target = int(rng.integers(3)) if label is None or rng.random() < 0.5 else label
        word, colour = (target if rng.random() < p else int(rng.integers(3)) for p in (0.7, 0.85))
        pixels = np.clip(rng.normal(60, 25, (12, 12, 3)) + 110 * (np.arange(3) == colour), 0, 255).astype(np.uint8)
        text = f"{WORDS[word]} {rng.integers(1000)}" if rng.random() < 0.8 else None
        rows.append({"text": text, "photo": png(pixels), "label": CLASSES[target]})
    return rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a run of fit, and the rows of its table."""
    folder = tmp_path_factory.mktemp("drift")
    rows = draw_rows(np.random.default_rng(0), 450)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "photo", "label", "split"])
        for index, row in enumerate(rows):
            (folder / f"{index}.png").write_bytes(row["photo"])
            writer.writerow([row["text"], f"{index}.png", row["label"], "val" if index % 3 else "train"])
    encoders = {
        "text": ("TinyText", {"dim": 16, "max_tokens": 12}),
        "photo": ("TinyImage", {"dim": 16, "image_size": 16}),
    }
    specs = {
        name: {"class_path": f"fusion_pl.encoders.{path}", "init_args": arguments}
        for name, (path, arguments) in encoders.items()
    }
    options = ["--model.encoders", json.dumps(specs), "--model.fusion", "Concat", "--data", "ManifestData"]
    options += ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-2"]
    options += ["--data.manifest", "rows.csv", "--data.num_workers", "0", "--trainer.max_epochs", "3"]
    options += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--seed_everything", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", sys.argv)
        assert run("fit", options) == 0
    return folder / "lightning_logs/version_0/checkpoints/best.ckpt", rows


@pytest.fixture(scope="module")
def client(trained):
    options = ServeOptions(str(trained[0]), device="cpu", limits=Limits(samples=100), window=WINDOW)
    with TestClient(create_app(Service(options))) as client:
        yield client


def serve(client, rows):
    """Send rows, and return the names of the quantities that are flagged, and all metrics."""
    samples = [{"text": row["text"], "photo": row["photo"] and base64.b64encode(row["photo"]).decode()} for row in rows]
    for start in range(0, len(samples), 100):
        answer = client.post("/predict", json={"samples": samples[start : start + 100]}).json()
        assert "outlier_p_values" not in answer["predictions"][0]
    found = metrics(client)
    return {name for (metric, name, _), value in found.items() if metric == "detected" and value}, found


def metrics(client):
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name.removeprefix("fusion_pl_drift_"), *map(sample.labels.get, ("quantity", "bin"))): sample.value
        for family in families
        if family.name.startswith("fusion_pl_drift")
        for sample in family.samples
    }


def window_size(found, quantity):
    return sum(value for (metric, name, _), value in found.items() if (metric, name) == ("window_samples", quantity))


def test_validation_histograms_are_those_of_the_predictions(trained, client):
    """The histograms of the checkpoint are those of its validation rows, sent as requests."""
    rows = [row for index, row in enumerate(trained[1]) if index % 3]
    flagged, found = serve(client, rows)
    assert not flagged
    reference = Reference(Predictor.from_checkpoint(trained[0], device="cpu"))
    assert tuple(reference.histograms) == QUANTITIES
    for name, histogram in reference.histograms.items():
        window = [found["window_samples", name, label] for label in histogram.bins]
        assert window == pytest.approx(histogram.counts, abs=2)  # rounding errors may move a number across a cut
        assert found["psi", name, None] < 0.01


def test_new_samples_of_the_same_distribution_are_not_flagged(client):
    flagged, found = serve(client, draw_rows(np.random.default_rng(1), WINDOW))
    assert not flagged
    assert window_size(found, "inputs") == WINDOW  # the samples of the test before are not in the window any more
    assert all(found["psi", name, None] < 5 * found["psi_by_chance", name, None] for name in QUANTITIES)


def test_a_class_that_is_over_represented_is_flagged_in_the_predictions(client):
    flagged, _ = serve(client, draw_rows(np.random.default_rng(2), WINDOW, label=2))
    assert "predictions" in flagged
    assert "inputs" not in flagged


def test_an_input_that_is_missing_is_flagged_in_the_inputs(client):
    rows = [row | {"text": None} for row in draw_rows(np.random.default_rng(3), WINDOW)]
    flagged, found = serve(client, rows)
    assert "inputs" in flagged
    assert flagged.isdisjoint({"predictions", "distance of photo", "distance of text"})
    assert window_size(found, "distance of text") == 0


def test_pictures_of_noise_are_flagged_in_their_distance(client):
    rng = np.random.default_rng(4)
    rows = [row | {"photo": png(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))} for row in draw_rows(rng, WINDOW)]
    flagged, _ = serve(client, rows)
    assert "distance of photo" in flagged
    assert flagged.isdisjoint({"inputs", "distance of text"})


def test_the_page_shows_both_histograms_with_escaped_names(client):
    serve(client, [row | {"text": None} for row in draw_rows(np.random.default_rng(5), WINDOW)])
    response = client.get("/drift")
    assert response.headers["Content-Type"].startswith("text/html")
    page = response.text
    assert "The latest 300 served samples beside 300 validation samples" in page
    assert "&lt;y&gt;" in page
    assert "<y>" not in page
    assert "<script" not in page
    row = re.search(r"<tr><td>inputs</td>\s*<td>(.*?)</td>", page, re.DOTALL)[1]
    assert "large drift" in row
    shares = re.search(r"<td>photo</td>.*?<td>([\d.]+) %<br>100.0 %</td>", page, re.DOTALL)[1]
    assert float(shares) == pytest.approx(20, abs=6)
    assert "/drift" in client.get("/openapi.json").json()["paths"]


def test_a_few_samples_are_never_said_to_be_without_drift(trained):
    options = ServeOptions(str(trained[0]), device="cpu", limits=Limits(samples=100), window=WINDOW)
    with TestClient(create_app(Service(options))) as client:
        serve(client, draw_rows(np.random.default_rng(6), 12))
        page = client.get("/drift").text
    assert page.count(">too few samples<") == len(QUANTITIES)
    assert "no drift found" not in page
    assert "merged" in page


def test_a_histogram_of_confidences_has_no_bin_above_one():
    high = torch.linspace(0.5, 1, 200, dtype=torch.float64)
    histogram, cuts = confidence_histogram(high)
    assert histogram.bins[-1].endswith(" to 1")
    assert (sum(histogram.counts), len(histogram.bins)) == (200, len(cuts))
    assert bisect.bisect_left(cuts, 1.0) == len(histogram.bins) - 1
    low, _ = confidence_histogram(high * 0.9)
    assert low.bins[-1] == "above 0.9"


def test_without_the_option_there_is_no_page(trained):
    with TestClient(create_app(Service(ServeOptions(str(trained[0]), device="cpu")))) as client:
        assert client.get("/drift").status_code == 404
        assert metrics(client) == {}
