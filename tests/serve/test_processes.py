"""The process of a server: mistakes, stop, ports and tokens, as a user meets them."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from fusion_pl.__main__ import main
from tests.parsing import ROOT

TOKEN = "0123456789abcdef"


def serve(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fusion-pl", "serve", *map(str, arguments), "--device", "cpu"])
        return main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt_path", "none.ckpt"], "none.ckpt"),
        (["--port", "70000"], "--port is 70000, expected a number from 0 to 65535"),
        (["--workers", "0"], "--workers is 0, expected a number from 1"),
        (["--limits.samples", "0"], "--limits.samples is 0, expected a number above 0"),
        (["--host", "no such host"], "--host no such host is not an address"),
        (
            ["--host", "192.0.2.1"],
            "cannot listen on port 8000 of 192.0.2.1 (Cannot assign requested address): give --host",
        ),
        (
            ["--token_file", "none.txt"],
            "--token_file none.txt does not exist: write a token of at least 16 ASCII characters",
        ),
        (["--token_file", "short.txt"], "must have at least 16 ASCII characters without spaces"),
        (["--coverage", "0.9"], "coverage"),
        (["--queu", "5"], "did you mean --queue"),
        (
            ["--port", "0", "--allowed_hosts", "http://example.com"],
            "--allowed_hosts http://example.com: expected a host without protocol and port, such as example.com",
        ),
        (["--reference"], "predictions of the validation samples, and the checkpoint has none: train with fusion-pl"),
        (["--reference", "--window", "0"], "--window is 0, expected a number from 1"),
        (["--window", "100"], "--window is the number of samples that --reference compares: pass --reference"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("secret\n")
    given = arguments if "--ckpt_path" in arguments else ["--ckpt_path", checkpoint, *arguments]
    assert serve(*given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert error.count("fusion-pl: error: ") == 1


def test_a_port_in_use_is_one_sentence(checkpoint, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve("--ckpt_path", checkpoint, "--port", port) == 2
    error = capsys.readouterr().err
    assert f"cannot listen on port {port} of 127.0.0.1 (Address already in use): give another --port" in error
    assert "--host" not in error


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "python_multipart", "prometheus_client"])
def test_without_its_packages_the_command_to_install_them_is_given(package, checkpoint, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert serve("--ckpt_path", checkpoint) == 2
    assert f"fusion-pl serve needs {package}: pip install 'fusion-pl[serve]'" in capsys.readouterr().err


def test_a_stopped_server_answers_what_it_has_accepted(checkpoint, tmp_path):
    (tmp_path / "token.txt").write_text(f"{TOKEN}\n")
    options = ["--ckpt_path", checkpoint, "--port", "0", "--device", "cpu", "--token_file", tmp_path / "token.txt"]
    options += ["--page"]
    command = [sys.executable, "-m", "fusion_pl", "serve", *map(str, options)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stderr.readline()
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)", line)[1])
            assert process.stderr.readline() == f"The page to try the model: http://127.0.0.1:{port}/\n"
            assert request(port, "GET", "/health", {})[0] == 200
            assert request(port, "GET", "/info", {})[0] == 401
            status, text = request(port, "GET", "/", {"Host": f"evil.example:{port}"})
            assert (status, f"the header Host is 'evil.example:{port}'" in text) == (400, True)
            token = {"Authorization": f"Bearer {TOKEN}"}
            body = json.dumps({"title": "a secret text"}).encode()
            accepted = http.client.HTTPConnection("127.0.0.1", port)
            accepted.putrequest("POST", "/predict?q=secret")
            for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(body)))):
                accepted.putheader(name, value)
            accepted.putheader("Authorization", token["Authorization"])
            accepted.endheaders(body[:5])
            while "fusion_pl_accepted_requests 1.0" not in request(port, "GET", "/metrics", token)[1]:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            while is_listening(port):
                time.sleep(0.01)
            accepted.send(body[5:])
            response = accepted.getresponse()
            assert response.status == 200
            assert json.loads(response.read())["label"] in ("high", "low")
            accepted.close()
            rest = process.stderr.read()
            assert process.wait() == 0
        finally:
            process.kill()
    assert "secret" not in rest
    assert TOKEN not in rest
    assert "Traceback" not in rest


def request(port, method, path, headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def is_listening(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
