"""``POST /predict``: the predictions of ``Predictor``, from JSON and from multipart."""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import sys
import threading
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from fusion_pl.encoders import TinyText
from fusion_pl.fusion import Concat
from fusion_pl.module import FusionClassifier
from fusion_pl.serve.app import Server, create_app
from fusion_pl.serve.limits import Limits
from fusion_pl.serve.memory import Reservation
from fusion_pl.serve.requests import RequestError, read_body
from fusion_pl.serve.service import ServeOptions, Service
from fusion_pl.tasks import MultiLabel
from tests.serve.conftest import LIMITS, png, wav
from tests.test_module import quiet_trainer

BINARY = ("photo", "voice")
# The json module of Python 3.11 cannot read it.
DEEP = (200, "no input 'a'") if sys.version_info >= (3, 12) else (422, "the body is not JSON (it is nested too deeply)")


def as_json(sample):
    """The sample as a client sends it, with files in base64."""
    return {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value for name, value in sample.items()
    }


def subsets(sample):
    return [dict(pairs) for size in range(1, 5) for pairs in combinations(sample.items(), size)]


def check(answer, prediction):
    assert (answer["label"], answer["error"]) == (prediction.label, None)
    assert answer["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-5)
    assert answer["weights"] == pytest.approx(prediction.weights, abs=1e-5)


def test_every_subset_of_the_inputs_has_the_prediction_of_the_predictor(client, predictor, sample):
    all_subsets = subsets(sample)
    answers = []
    for start in (0, 8):  # a request may have eight samples
        part = [as_json(one) for one in all_subsets[start : start + 8]]
        answers += client.post("/predict", json={"samples": part}).json()["predictions"]
    assert len(answers) == 15
    for answer, one in zip(answers, all_subsets, strict=True):
        check(answer, predictor.predict(one))
    assert [answer["id"] for answer in answers] == [*map(str, range(8)), *map(str, range(7))]


@pytest.mark.parametrize("names", [("title",), ("photo", "sensors"), ("title", "photo", "voice", "sensors")])
def test_multipart_data_urls_and_null_are_the_same_sample(names, client, predictor, sample):
    given = {name: sample[name] for name in names}
    prediction = predictor.predict(given)
    texts = {
        name: value if name == "title" else json.dumps(value) for name, value in given.items() if name not in BINARY
    }
    files = {name: (f"/etc/{name}", value) for name, value in given.items() if name in BINARY}
    fields = {name: (None, value) for name, value in texts.items()}
    check(client.post("/predict", files=fields | files).json(), prediction)
    urls = {
        name: f"data:image/png;base64,{value}" if name == "photo" else value for name, value in as_json(given).items()
    }
    check(client.post("/predict", json=dict.fromkeys(sample) | urls).json(), prediction)


def test_a_bad_sample_has_an_error_and_the_others_are_unharmed(client, predictor, sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(sample["photo"])
    text = {"title": "fine"}
    wrong = {
        "paths and URLs are not opened": {"photo": "photo.png"},
        "input 'voice': expected the content of a file as base64": {"voice": "http://localhost/a.wav"},
        "got 'file:///etc/passwd": {"photo": "file:///etc/passwd"},
        "this model has no input 'picture'": {"picture": "x"},
        "none of the model's inputs": {"title": None},
        "cannot be read as an image": {"photo": as_json(sample)["photo"][:80]},
    }
    answers = client.post("/predict", json={"samples": [text, *wrong.values(), text]}).json()["predictions"]
    for message, answer in zip(wrong, answers[1:-1], strict=True):
        assert message in answer["error"]
        assert " cell" not in answer["error"]  # of a table
        assert answer["label"] is None
    for answer in (answers[0], answers[-1]):
        check(answer, predictor.predict(text))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"photo": png(np.zeros((101, 100), np.uint8))}, "100 × 101 pixels, expected at most 0.01 million"),
        ({"voice": wav(np.zeros(8000 * 2 + 1))}, "2 seconds, expected at most 2"),
        ({"voice": wav(np.zeros((100, 9)))}, "9 channels, expected at most 8"),
        ({"title": "x" * 1001}, "1,001 characters, expected at most 1,000"),
        ({"title": 5}, "expected a text, got a number"),
        ({"title": "\ud800"}, "is not a character"),
        ({"sensors": "1 2 3"}, "expected a list of numbers, or a list of such lists, got a text"),
        ({"sensors": [1, 2]}, "3"),
        ({"sensors": ["/etc/passwd", 1, 2]}, "may not be a path"),
        ({"sensors": [[1, 2, 3], [1]]}, "different lengths"),
        ({"photo": 5}, "got a number"),
        ({"photo": "data:image/png,abc"}, "as base64 or as a data URL"),
        ({"photo": ""}, "cannot be read as an image"),
    ],
)
def test_values_beyond_a_limit_or_of_another_kind_are_errors_of_their_sample(values, message, client):
    response = client.post(
        "/predict", content=json.dumps(as_json(values)), headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 200
    assert message in response.json()["error"]


JSON = "application/json"
FORM = "multipart/form-data; boundary=x"


def part(name, value="1"):
    return f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'


@pytest.mark.parametrize(
    ("kind", "body", "status", "message"),
    [
        (JSON, "{", 422, "the body is not JSON"),
        (JSON, "", 422, "the body is not JSON"),
        (JSON, "[]", 422, "the body is not an object"),
        (JSON, "null", 422, "the body is not an object"),
        (JSON, b"\xff\xfe{", 422, "the body is not JSON"),
        (JSON, '{"sensors": [NaN, 1, 2]}', 422, "NaN is not a JSON value"),
        (JSON, '{"sensors": [1' + "0" * 5000 + "]}", 422, "the body is not JSON"),
        (JSON, '{"title": "a", "title": "b"}', 422, "a key is given twice"),
        (JSON, "[" * 900 + "]" * 900, 422, "not an object"),
        (JSON, '{"a":' * 50 + "1" + "}" * 50, 200, "no input 'a'"),
        (JSON, '{"a":' * 990 + "1" + "}" * 990, *DEEP),
        (JSON, "[" * 1001, 422, "more than 1,000 values"),
        (JSON, json.dumps({"samples": []}), 422, '"samples" is empty: send at least one sample'),
        (JSON, json.dumps({"samples": [{"title": "a"}, 7]}), 422, "samples[1] is a number, expected an object"),
        (JSON, json.dumps({"samples": [None]}), 422, "samples[0] is null"),
        (JSON, json.dumps({"samples": [{}] * 9}), 422, "9 samples, expected at most 8"),
        (JSON, json.dumps({"title": "x" * 200_000}), 413, "more than 0.2 MB: send smaller files or fewer samples"),
        ("text/plain", "{}", 415, "application/json or multipart/form-data"),
        (FORM, "--y\r\n", 422, "not multipart/form-data with one part per input: "),
        ("multipart/form-data", part("title") + "--x--", 422, "the Content-Type has no boundary"),
        (FORM, part("title") + part("photo", "x" * 99), 422, "the final boundary is missing"),
        (FORM, part("title") + "".join(map(part, "abcde")) + "--x--", 422, "more than 5 parts"),
        (FORM, part("title") + part("title") + "--x--", 422, "'title' is given twice"),
        (
            FORM,
            part("titel") + "--x--",
            200,
            "no input 'titel'; it takes: title, photo, voice, sensors; did you mean title?",
        ),
        (FORM, part("sensors", "[1, 2") + "--x--", 422, "the part 'sensors' is not JSON ("),
        (FORM, part("sensors", "[" * 1001) + "--x--", 422, "more than 1,000 values"),
    ],
)
def test_a_malformed_request_is_one_sentence(kind, body, status, message, client):
    response = client.post("/predict", content=body, headers={"Content-Type": kind})
    assert response.status_code == status
    text = response.json()["error"]
    assert message in text
    assert "\n" not in text


def test_an_unknown_input_is_the_same_error_in_multipart_and_json(client):
    body = part("title") + part("titel") + "--x--"
    form = client.post("/predict", content=body, headers={"Content-Type": FORM})
    as_json = client.post("/predict", json={"title": "1", "titel": "1"})
    assert form.status_code == as_json.status_code == 200
    assert form.json() == as_json.json()
    assert form.json()["label"] is None


def test_a_body_without_a_length_is_not_read_beyond_the_limit():
    sent = []

    async def receive():
        sent.append(1)
        return {"type": "http.request", "body": b" " * 10_000, "more_body": len(sent) < 100}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(RequestError) as error:
        asyncio.run(read_body(request, LIMITS))
    assert (error.value.status_code, error.value.headers["Connection"]) == (413, "close")
    assert len(sent) == 21  # of 0.01 MB each, with a limit of 0.2 MB


def test_a_full_queue_is_answered_429_and_accepted_requests_are_finished(checkpoint):
    service = Service(ServeOptions(str(checkpoint), device="cpu", queue=3))
    entered, release = threading.Event(), threading.Event()
    statuses = []
    with TestClient(create_app(service)) as client:
        predict_batches = service.predictor.predict_batches

        def block(*arguments):
            entered.set()
            release.wait(60)
            return predict_batches(*arguments)

        service.predictor.predict_batches = block

        def post():
            statuses.append(client.post("/predict", json={"title": "a"}).status_code)

        threads = [threading.Thread(target=post) for _ in range(3)]
        for thread in threads:
            thread.start()
        entered.wait(60)
        while client.get("/metrics").text.find("fusion_pl_accepted_requests 3.0") < 0:
            pass
        refused = client.post("/predict", json={"title": "a"})
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert client.get("/health").status_code == 200
        release.set()
        for thread in threads:
            thread.join()
        post()  # accepted again
        assert statuses == [200] * 4
        metrics = client.get("/metrics").text
    assert 'fusion_pl_requests_total{path="/predict",status="429"} 1.0' in metrics
    assert "fusion_pl_accepted_requests 0.0" in metrics


def test_small_files_of_large_images_share_a_limited_memory(checkpoint):
    limits = Limits(opened_megabytes=1.0)
    server = Server(Service(ServeOptions(str(checkpoint), device="cpu", limits=limits)))
    photo = base64.b64encode(png(np.zeros((500, 250, 3), np.uint8))).decode()  # 0.5 MB with four bytes per pixel
    reservations = [Reservation(server.memory) for _ in range(3)]
    body = json.dumps({"samples": [{"photo": photo}] * 3}).encode()
    with pytest.raises(RequestError, match="the images and sounds of the request take 2 MB once they are opened"):
        server._open(body, None, reservations[0])
    assert reservations[0].size == 0
    body = json.dumps({"photo": photo}).encode()
    for reservation in reservations[:2]:
        assert server._open(body, None, reservation)[1][0].bad_files == ()
        assert reservation.size == 500_000
    waiting = threading.Thread(target=server._open, args=[body, None, reservations[2]])
    waiting.start()
    waiting.join(0.2)
    assert reservations[2].size == 0
    reservations[0].end()
    waiting.join(60)
    assert reservations[2].size == 500_000


def test_a_server_that_stops_does_not_wait_for_requests_that_wait_for_memory(service):
    """Requests that are abandoned after 30 seconds do not give their memory back."""
    server = Server(service)
    taken, waiting = Reservation(server.memory), Reservation(server.memory)
    taken.reserve(server.memory.limit)

    async def run():
        async with server.lifespan(None):
            return server.memory.threads.submit(waiting.reserve, 1)

    stopped = queue.Queue()
    threading.Thread(target=lambda: stopped.put(asyncio.run(run())), daemon=True).start()
    with pytest.raises(RequestError):
        stopped.get(timeout=60).result()


# A panic in a library that is written in Rust is not derived from Exception.
Panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})


@pytest.mark.parametrize("error", [RuntimeError, Panic])
def test_a_sample_that_the_model_fails_on_does_not_fail_the_others(error, service, client, predictor, caplog):
    forward, secret = service.predictor.model.encode, "a secret text"

    def fail(batch):
        if len(batch.ids) != 1 or batch.ids == ["1"]:
            raise error(secret)
        return forward(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.predictor.model, "encode", fail)
        answers = client.post("/predict", json={"samples": [{"title": name} for name in "abc"]}).json()["predictions"]
    assert "the model failed on this sample" in answers[1]["error"]
    check(answers[0], predictor.predict({"title": "a"}))
    check(answers[2], predictor.predict({"title": "c"}))
    assert error.__name__ in caplog.text
    assert secret not in caplog.text


@pytest.mark.parametrize("error", [RuntimeError, Panic])
def test_after_an_unexpected_failure_the_server_goes_on(error, service, client, caplog):
    secret = "a secret text"

    def fail(*arguments, **options):
        raise error(secret)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.metrics.batch_seconds, "observe", fail)  # after the prediction
        response = client.post("/predict", json={"title": "a"})
    assert (response.status_code, response.json()) == (500, {"error": "the server failed; its log has the reason"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.predictor, "open_sample", fail)
        assert client.post("/predict", json={"title": "a"}).status_code == 500
    assert client.post("/predict", json={"title": "a"}).json()["error"] is None
    assert secret not in caplog.text
    assert error.__name__ in caplog.text


def test_an_answer_has_the_fields_of_its_task(tmp_path):
    model = FusionClassifier({"samples": TinyText(dim=8)}, Concat, ["crime", "drama"], task=MultiLabel())
    trainer = quiet_trainer(tmp_path, max_epochs=0)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "best.ckpt", weights_only=True)
    service = Service(ServeOptions(str(tmp_path / "best.ckpt"), device="cpu", limits=Limits(samples=2)))
    with TestClient(create_app(service)) as client:
        answer = client.post("/predict", json={"samples": "a text of an input with this name"}).json()
        many = client.post("/predict", json={"samples": [{"samples": "a"}]}).json()
    assert set(answer) == {"id", "labels", "probabilities", "weights", "error"}
    assert answer["error"] is None
    assert len(many["predictions"]) == 1
