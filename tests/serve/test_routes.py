"""The routes beside ``/predict``, and the token."""

from __future__ import annotations

import hashlib

import pytest
from starlette.testclient import TestClient

from fusion_pl.serve.app import create_app
from fusion_pl.serve.batching import Batcher
from fusion_pl.serve.hosts import allowed_hosts
from fusion_pl.serve.service import ServeOptions, Service

TOKEN = "0123456789abcdef"


def test_info_says_what_the_model_takes_and_returns(client, checkpoint):
    info = client.get("/info").json()
    assert info["inputs"] == {"title": "text", "photo": "image", "voice": "sound", "sensors": "vector"}
    assert (info["classes"], info["task"], info["device"]) == (["high", "low"], "MultiClass", "cpu")
    assert info["checkpoint"] == {"file": "best.ckpt", "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest()}


def test_the_examples_of_the_description_run(client):
    document = client.get("/openapi.json").json()
    examples = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    one = client.post("/predict", json=examples["one"]["value"]).json()
    many = client.post("/predict", json=examples["many"]["value"]).json()["predictions"]
    assert set(examples["one"]["value"]) == {"title", "photo", "voice", "sensors"}
    assert one["error"] is None
    assert [answer["error"] for answer in many] == [None] * 5


def test_other_paths_and_methods_are_one_sentence(client):
    for method, path, status in (
        ("GET", "/x", 404),
        ("GET", "/info/", 404),
        ("GET", "/predict", 405),
        ("POST", "/info", 405),
    ):
        response = client.request(method, path)
        assert response.status_code == status
        assert "POST /predict" in response.json()["error"]
    for path, option in (("/", "--page"), ("/drift", "--reference")):
        assert f"without {option}, which adds this path" in client.get(path).json()["error"]


def test_the_sample_that_warms_the_model_up_is_not_counted(checkpoint):
    service = Service(ServeOptions(str(checkpoint), device="cpu"))
    assert service.metrics.registry.get_sample_value("fusion_pl_batch_samples_count") == 0
    assert service.metrics.registry.get_sample_value("fusion_pl_batch_seconds_count") == 0


def test_a_server_that_predicts_no_batches_any_more_is_not_ready(checkpoint, monkeypatch):
    async def fail(batcher):
        raise RuntimeError

    app = create_app(Service(ServeOptions(str(checkpoint), device="cpu")))
    with TestClient(app) as client:
        assert client.get("/ready").json() == {"ready": True}
    monkeypatch.setattr(Batcher, "run", fail)
    with TestClient(app) as client:
        response = client.get("/ready")
        assert (response.status_code, response.json()) == (503, {"ready": False})


def test_metrics_count_requests_and_samples(checkpoint):
    with TestClient(create_app(Service(ServeOptions(str(checkpoint), device="cpu")))) as client:
        client.post("/predict", json={"samples": [{"title": "a"}, {"title": 5}]})
        client.post("/predict", json=[])
        for body in ({"title": "a"}, {"title": "b"}, []):
            client.post("/explain?target=high", json=body)
        client.post("/explain?target=middle", json={"title": "a"})
        lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    expected = {("/predict", 200): 1, ("/predict", 422): 1, ("/explain", 200): 2, ("/explain", 422): 2}
    for (path, status), count in expected.items():
        assert float(lines[f'fusion_pl_requests_total{{path="{path}",status="{status}"}}']) == count
    assert float(lines['fusion_pl_request_seconds_count{path="/predict"}']) == 2
    assert float(lines['fusion_pl_request_seconds_count{path="/explain"}']) == 4
    assert float(lines['fusion_pl_samples_total{result="error"}']) == 1
    assert float(lines["fusion_pl_batch_samples_sum"]) == 2
    assert float(lines["fusion_pl_accepted_requests"]) == 0


def test_with_a_token_only_health_and_readiness_are_public(checkpoint):
    service = Service(ServeOptions(str(checkpoint), device="cpu", token=TOKEN))
    assert TOKEN not in repr(service.options)
    with TestClient(create_app(service)) as client:
        assert {client.get(path).status_code for path in ("/health", "/ready")} == {200}
        for wrong in (None, "Bearer", f"Bearer {TOKEN}x", TOKEN, f"Basic {TOKEN}", "Bearer é".encode("latin-1")):
            headers = {} if wrong is None else {"Authorization": wrong}
            for method, path in (("POST", "/predict"), ("GET", "/info"), ("GET", "/metrics"), ("GET", "/openapi.json")):
                response = client.request(method, path, headers=headers)
                assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        answer = client.post("/predict", json={"title": "a"}, headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.json()["error"] is None
    assert (
        service.metrics.registry.get_sample_value("fusion_pl_requests_total", {"path": "/predict", "status": "200"})
        == 1
    )


@pytest.fixture(scope="module")
def local_client(checkpoint):
    """A client of a server with the hosts of one on 127.0.0.1, and one more."""
    hosts = allowed_hosts("127.0.0.1", ["*.example.com"])
    with TestClient(create_app(Service(ServeOptions(str(checkpoint), device="cpu", allowed_hosts=hosts)))) as client:
        yield client


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        *((host, True) for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]", "[::1]:8000")),
        *((host, True) for host in ("model.example.com", "a.b.example.com:443")),
        *((host, False) for host in ("example.com", "evil.org", "localhost.evil.org", "evil.org:127.0.0.1", "")),
        *((host, False) for host in ("127.0.0.1.evil.org:8000", "localhost@evil.org", "[::2]", "evil.org#localhost")),
    ],
)
def test_requests_to_other_hosts_are_refused(host, is_allowed, local_client):
    for method, path, status in (("GET", "/info", 200), ("POST", "/predict", 415), ("GET", "/none", 404)):
        response = local_client.request(method, path, headers={"Host": host})
        assert response.status_code == (status if is_allowed else 400)
        if not is_allowed:
            expected = "expected localhost, 127.0.0.1, [::1], *.example.com: --allowed_hosts of the server adds hosts"
            assert response.json() == {"error": f"the header Host is {host!r}, {expected}"}


def test_probes_send_any_host(local_client):
    for path in ("/health", "/ready"):
        assert local_client.get(path, headers={"Host": "10.1.2.3:8000"}).status_code == 200


def test_the_hosts_of_a_server_depend_on_its_address():
    assert allowed_hosts("::1", []) == ("localhost", "127.0.0.1", "[::1]")
    assert "*" in allowed_hosts("127.0.0.1", ["*"])  # Starlette's word for all hosts
    assert allowed_hosts("0.0.0.0", []) is None
    assert allowed_hosts("0.0.0.0", ["example.com"]) == ("localhost", "127.0.0.1", "[::1]", "example.com")


def test_no_site_of_another_origin_may_read_an_answer(client):
    response = client.get("/info", headers={"Origin": "http://example.org"})
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert client.options("/predict", headers={"Origin": "http://example.org"}).status_code == 405


@pytest.mark.parametrize("path", ["/openapi.json", "/metrics"])
def test_no_answer_has_the_path_of_the_checkpoint(path, client, checkpoint):
    assert str(checkpoint.parent) not in client.get(path).text
    assert str(checkpoint.parent) not in client.get("/info").text
