"""The routes of the page, its examples, and the mistakes of its options."""

from __future__ import annotations

import base64
import io
import re

import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from fusion_pl.encoders import FeatureEncoder
from fusion_pl.serve.app import create_app
from fusion_pl.serve.command import serve_command
from fusion_pl.serve.examples import MAX_EDGE, MAX_EXAMPLES, encode_value, table_examples
from fusion_pl.serve.limits import Limits
from fusion_pl.serve.pages import FOLDER
from fusion_pl.serve.service import ServeOptions, Service
from fusion_pl.types import UserError, Waveform

TOKEN = "0123456789abcdef"


@pytest.fixture
def table(tmp_path):
    def write(*rows):
        (tmp_path / "examples.csv").write_text("\n".join(["title,photo,voice,sensors", *rows]) + "\n")
        return str(tmp_path / "examples.csv")

    return write


def test_without_the_option_there_is_no_page(client):
    assert {client.get(path).status_code for path in ("/", "/page.js", "/examples")} == {404}


def test_files_of_the_page_are_public_and_examples_and_explanations_need_the_token(checkpoint):
    options = ServeOptions(str(checkpoint), device="cpu", page=True, token=TOKEN)
    with TestClient(create_app(Service(options))) as client:
        for path in ("/", *(f"/{file.name}" for file in FOLDER.iterdir() if file.suffix != ".html")):
            response = client.get(path)
            assert response.status_code == 200
            policy = response.headers["Content-Security-Policy"]
            assert "script-src 'self';" in policy
            assert "http" not in policy
            assert "unsafe" not in policy
        assert client.get("/examples").status_code == 401
        assert client.post("/explain", json={"title": "a"}).status_code == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert client.get("/examples", headers=headers).json() == {"examples": []}
        assert client.post("/predict", json={"title": "a"}, headers=headers).json()["error"] is None


def test_the_files_of_the_page_refer_to_no_other_server():
    for path in FOLDER.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text
        assert not re.search(r"""["'`(]//""", text)  # src="//host/file"


def test_examples_are_a_few_rows_that_can_be_opened(predictor, table):
    rows = [f"text {row},{'missing.png' if row % 2 else ''},," for row in range(40)]
    examples = table_examples(predictor, table(*rows), Limits())
    assert 0 < len(examples) <= MAX_EXAMPLES
    assert all(int(example["inputs"]["title"].split()[1]) % 2 == 0 for example in examples)
    assert examples == table_examples(predictor, table(*rows), Limits())
    with pytest.raises(UserError, match="none of its rows can be opened within --limits"):
        table_examples(predictor, table(*rows), Limits(characters=5))


def test_a_large_picture_of_an_example_is_reduced(predictor):
    url = encode_value(predictor.processors["photo"], Image.new("L", (3000, 10)))
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        assert image.size == (MAX_EDGE, 3)


def test_examples_are_values_that_json_can_write_and_the_beginning_of_sounds(predictor):
    flagged = FeatureEncoder(features=3, dim=8, missing_numbers="flag").processor
    value = flagged.open([1.0, None, 2.0])
    assert encode_value(flagged, value) == [1.0, None, 2.0]
    assert encode_value(flagged, value.expand(2, 3)) == [[1.0, None, 2.0]] * 2
    voice = predictor.processors["voice"]
    url = encode_value(voice, Waveform(torch.zeros(11 * 8000), 8000))
    assert len(voice.open_whole(base64.b64decode(url.partition(",")[2])).samples) == 10 * 8000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--examples", "a.csv"], "--examples gives examples for the page: add --page"),
        (["--page", "--examples", "missing.csv"], "missing.csv"),
    ],
)
def test_wrong_options_are_one_sentence(options, message, checkpoint):
    with pytest.raises(UserError, match=message) as error:
        serve_command(["--ckpt_path", str(checkpoint), "--port", "0", "--device", "cpu", *options])
    assert "\n" not in str(error.value)


def test_a_table_without_a_row_that_can_be_opened_is_an_error(predictor, table):
    with pytest.raises(UserError, match=r"examples\.csv: none of its rows can be opened.*missing\.png"):
        table_examples(predictor, table(",missing.png,,"), Limits())
