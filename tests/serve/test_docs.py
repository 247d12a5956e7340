"""The examples of docs/serving.md."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess

import pytest

from fusion_pl.cli.options import options_of
from fusion_pl.serve.command import serve_parser
from fusion_pl.serve.openapi import ERRORS
from tests.parsing import ROOT
from tests.test_readme import shell_lines

OPTIONS = {f"--{key}" for key in options_of(serve_parser())} | {"--help"}
COMMANDS = shell_lines("docs/serving.md")
CURL = [shlex.join(words) for words in COMMANDS if words[0] == "curl"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("command", CURL)
def test_a_shown_request_is_answered(command, address, sample, tmp_path):
    (tmp_path / "cat.png").write_bytes(sample["photo"])
    (tmp_path / "meow.wav").write_bytes(sample["voice"])
    words = shlex.split(command.replace("http://127.0.0.1:8000", address))
    ran = subprocess.run([*words, "-s", "-S"], cwd=tmp_path, capture_output=True, text=True, check=True)
    answer = json.loads(ran.stdout)
    predictions = answer.get("predictions", [answer])
    assert len(predictions) == max(1, command.count('"title"') - ("samples" not in command))
    assert [one["error"] for one in predictions] == [None] * len(predictions)


def test_there_are_requests_of_both_kinds():
    assert any("-F" in command for command in CURL)
    assert any("-d" in command for command in CURL)


def test_the_shown_fields_and_statuses_are_those_of_the_server(client):
    text = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    shown = json.loads(re.search(r"```json\n(.*?)```", text, re.DOTALL)[1])
    assert list(shown) == list(client.post("/predict", json={"title": "a"}).json())
    assert {"200", "404", "405", *ERRORS} <= set(re.findall(r"\b[245]\d\d\b", text))
    for option in re.findall(r"`(--[\w.]+)", text):
        assert option in OPTIONS | {"--publish"}, option
