"""``POST /explain``: the explanations of ``Explainer``, one after the other, beside the predictions."""

from __future__ import annotations

import queue
import threading
from dataclasses import replace

import numpy as np
import pytest
from starlette.testclient import TestClient

from fusion_pl.explain import Explainer
from fusion_pl.serve.app import create_app
from fusion_pl.serve.explain import MAX_REQUESTS
from fusion_pl.serve.service import ServeOptions, Service
from tests.serve.conftest import LIMITS, png
from tests.serve.test_predict import as_json

NEAR = {"abs": 1e-4, "rel": 1e-4}


def test_an_explanation_is_that_of_the_explainer(client, predictor, sample):
    answer = client.post("/explain?evidence=true", json=as_json(sample)).json()
    expected = Explainer(predictor).explain(sample)
    assert answer["error"] is None
    assert answer["explained_class"] == expected.target
    assert answer["summary"] == expected.summary
    assert list(answer["inputs"]) == list(sample)
    for name, effect in expected.inputs.items():
        given = answer["inputs"][name]
        assert given["shapley"] == pytest.approx(effect.shapley, **NEAR)
        assert given["without"] == pytest.approx(effect.without, **NEAR)
        assert [part["effect"] for part in given["parts"]["spans"]] == pytest.approx(
            list(effect.parts.spans.values()), **NEAR
        )
        others = {other: value for other, value in sample.items() if other != name}
        assert given["decision_without"] == predictor.predict(others).names
    assert "".join(piece for piece, _, _ in answer["views"]["title"]["pieces"]) == sample["title"]
    assert len(answer["views"]["photo"]["images"]) == 2


def test_the_evidence_is_computed_on_demand_and_the_class_can_be_chosen(client, predictor, sample):
    parts = {name: (name, value) for name, value in sample.items() if isinstance(value, bytes)}
    for target in predictor.classes:
        answer = client.post(f"/explain?target={target}", files=parts).json()
        assert answer["explained_class"] == target
        assert list(answer["inputs"]) == ["photo", "voice"]
        assert "views" not in answer
        assert not any("parts" in effect for effect in answer["inputs"].values())


def test_rounding_errors_have_no_colour(client):
    black = {"photo": png(np.zeros((16, 16), np.uint8))}
    view = client.post("/explain?evidence=true", json=as_json(black)).json()["views"]["photo"]
    assert view["images"][0] == view["images"][1]


@pytest.mark.parametrize(
    ("url", "body", "status", "message"),
    [
        ("?target=middle", {"title": "a"}, 422, "'middle' is not one of the classes high, low"),
        ("?evidence=yes", {"title": "a"}, 422, "evidence is 'yes', expected true or false"),
        ("?evidenz=true", {"title": "a"}, 422, "no parameter 'evidenz': expected target, evidence"),
        ("?target=low&target=high", {"title": "a"}, 422, "the parameter 'target' is given twice"),
        ("", {"samples": [{"title": "a"}]}, 422, "takes one sample"),
        ("", {"title": "x" * 300_000}, 413, "more than 0.2 MB"),
        ("", {"photo": "/etc/passwd"}, 200, "paths and URLs are not opened"),
        ("", {}, 200, "none of the model's inputs"),
    ],
)
def test_a_wrong_request_is_one_sentence(url, body, status, message, client):
    response = client.post(f"/explain{url}", json=body)
    assert response.status_code == status
    assert message in response.json()["error"]


def test_a_sample_that_the_model_fails_on_is_one_sentence(service, client, monkeypatch, caplog):
    secret = "a secret text"

    def fail(batch):
        raise RuntimeError(secret)

    monkeypatch.setattr(service.predictor.model, "encode", fail)
    assert "the model failed on this sample" in client.post("/explain", json={"title": "a"}).json()["error"]
    assert secret not in caplog.text


def test_predictions_do_not_wait_for_explanations_and_too_many_are_answered_429(checkpoint, monkeypatch):
    photo = as_json({"photo": png(np.zeros((80, 100), np.uint8))})  # 32 kB with four bytes per pixel
    limits = replace(LIMITS, opened_megabytes=0.05)  # the other explanations wait for memory
    server = Service(ServeOptions(str(checkpoint), device="cpu", limits=limits))
    release, statuses, predicted = threading.Event(), queue.Queue(), queue.Queue()
    explain_sample = Explainer.explain_sample

    def wait(*arguments, **options):
        release.wait(60)
        return explain_sample(*arguments, **options)

    monkeypatch.setattr(Explainer, "explain_sample", wait)
    with TestClient(create_app(server)) as client:

        def post():
            statuses.put(client.post("/explain", json=photo).status_code)

        def predict():
            predicted.put(client.post("/predict", json=photo).json()["error"])

        threads = [threading.Thread(target=post) for _ in range(MAX_REQUESTS + 1)]
        for thread in threads:
            thread.start()
        assert statuses.get(timeout=60) == 429  # the others wait
        threads.append(threading.Thread(target=predict))
        threads[-1].start()
        try:
            assert predicted.get(timeout=30) is None
        finally:
            release.set()
            for thread in threads:
                thread.join()
    assert [statuses.get() for _ in range(MAX_REQUESTS)] == [200] * MAX_REQUESTS
