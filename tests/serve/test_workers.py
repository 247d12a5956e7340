"""``serve --workers 2`` as a user runs it: a worker that is killed under load is replaced, and nothing else is lost."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import threading
import time
from itertools import chain
from pathlib import Path

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from fusion_pl.encoders import TinyText
from fusion_pl.fusion import Concat
from fusion_pl.module import FusionClassifier
from fusion_pl.uncertainty.validation_scores import ValidationScores
from tests.commands import Command
from tests.serve.conftest import write_checkpoint
from tests.serve.test_processes import is_listening

# The supervisor would wait for an answer of the killed worker for an hour, if the end of its pipe did not tell.
PATIENT = """
import runpy
from fusion_pl.serve import supervisor
supervisor.SECONDS_TO_ANSWER = 3600
runpy.run_module("fusion_pl", run_name="__main__", alter_sys=True)
"""
PREDICT = ("POST", "/predict", json.dumps({"title": "a text"}), {"Content-Type": "application/json"})


@pytest.fixture
def server(tmp_path):
    """The process of a server with two workers, its port, and the file of what it prints."""
    model = FusionClassifier({"title": TinyText(dim=8)}, Concat, ["high", "low"])
    scores = torch.linspace(0, 0.5, 100, dtype=torch.float64)
    counts = {"high": 60, "low": 40}, {"title": 100}
    model.validation_scores = ValidationScores(scores, None, {"probability": scores}, *counts)
    write_checkpoint(tmp_path / "best.ckpt", model)
    (tmp_path / "examples.csv").write_text("title\nan example\n")
    options = ["--ckpt_path", "best.ckpt", "--port", "0", "--device", "cpu", "--workers", "2", "--page", "--reference"]
    options += ["--examples", "examples.csv", "--window", "100000"]
    output = tmp_path / "stderr.txt"
    command = Command(["serve", *options], [tmp_path / "stdout.txt", output], tmp_path, code=PATIENT)
    try:
        port = int(wait_for(lambda: re.search(r"http://127\.0\.0\.1:(\d+) ", output.read_text()))[1])
        wait_for(lambda: is_listening(port))
        yield command, port, output
    finally:
        command.kill()


def wait_for(condition):
    """Return the value of a condition once it is true."""
    deadline = time.monotonic() + 300
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


class Client:
    """A connection to one of the workers.

    Attributes:
        worker: process id of the worker that has accepted the connection.
        answered: number of requests for predictions that were answered 200.
        error: why a request had no such answer.
    """

    def __init__(self, supervisor, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self.answered, self.error = 0, None
        self.ask("GET", "/health")
        self.worker = owner(supervisor, self.connection.sock.getsockname()[1], port)

    def ask(self, *request):
        self.connection.request(*request)
        response = self.connection.getresponse()
        text = response.read().decode()
        assert response.status == 200, text
        return text

    def predict(self):
        assert json.loads(self.ask(*PREDICT))["label"] in ("high", "low")
        self.answered += 1

    def predict_until(self, stop):
        while not stop.wait(0.02):
            try:
                self.predict()
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.error = error
                return


def owner(supervisor, client_port, port):
    """Return the child process that has the server's end of a connection."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    ends = [f"0100007F:{one:04X}" for one in (port, client_port)]
    inode = next(fields[9] for fields in lines if fields[1:3] == ends)
    for process in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        for link in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):  # it is closed meanwhile
                if os.readlink(link) == f"socket:[{inode}]":
                    return int(process)
    raise AssertionError("no process has this socket")


def connect_to_both(supervisor, port):
    """Return four connections, two per worker, sorted by worker."""
    clients = {}
    while [len(ones) for ones in clients.values()] != [2, 2]:
        client = Client(supervisor, port)
        if len(ones := clients.setdefault(client.worker, [])) < 2:
            ones.append(client)
        else:
            client.connection.close()
            time.sleep(0.1)  # the other worker may still start
    return list(chain(*clients.values()))


def connect(supervisor, port, worker):
    """Return a connection to a worker; None if another one accepts it."""
    client = Client(supervisor, port)
    if client.worker == worker:
        return client
    client.connection.close()
    return None


def metric(client, name, **labels):
    """Return the sum of a metric over its labels."""
    families = text_string_to_metric_families(client.ask("GET", "/metrics"))
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def window(client):
    return metric(client, "fusion_pl_drift_window_samples", quantity="inputs")


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux")
def test_a_killed_worker_is_replaced_and_the_requests_of_the_other_are_answered(server, tmp_path):
    command, port, output = server
    clients = connect_to_both(command.pid, port)
    digest = json.loads(clients[0].ask("GET", "/info"))["checkpoint"]["sha256"]
    for client in clients:
        client.predict()
    for client in clients[::3]:  # one per worker: metrics and drift are sums over both
        assert metric(client, "fusion_pl_requests_total", status="200") == window(client) == 4
        assert "The latest 4 served samples beside 100 validation samples" in client.ask("GET", "/drift")
        assert "<form" in client.ask("GET", "/")

    (tmp_path / "examples.csv").unlink()  # a worker that is replaced has what the others have
    (tmp_path / "best.ckpt").write_bytes(b"another file")
    stop = threading.Event()
    threads = [threading.Thread(target=client.predict_until, args=[stop]) for client in clients]
    for thread in threads:
        thread.start()
    victim = clients[0].worker
    wait_for(lambda: min(client.answered for client in clients) >= 5)
    os.kill(victim, signal.SIGSTOP)
    time.sleep(1)  # the supervisor asks the worker whether it lives, twice per second, and waits for the answer
    os.kill(victim, signal.SIGKILL)
    replaced = re.compile(rf"The worker with the process id {victim} ended; (\d+) replaces it")
    new_worker = int(wait_for(lambda: replaced.search(output.read_text()))[1])
    new = wait_for(lambda: connect(command.pid, port, new_worker))
    new.predict()
    stop.set()
    for thread in threads:
        thread.join()
    assert [client.error is None for client in clients] == [False, False, True, True]
    assert json.loads(new.ask("GET", "/info"))["checkpoint"]["sha256"] == digest
    assert json.loads(new.ask("GET", "/examples"))["examples"][0]["inputs"] == {"title": "an example"}
    lost = metric(new, "fusion_pl_requests_total", status="200") - sum(one.answered for one in (*clients, new))
    assert 0 <= lost <= 2  # the answers to both clients of the victim may be on their way
    assert window(new) == sum(one.answered for one in (*clients[2:], new))  # that of the victim is left out
    for client in (*clients, new):
        client.connection.close()
    command.send_signal(signal.SIGTERM)
    assert command.wait() == 0
    assert "Traceback" not in output.read_text()
