"""``fusion-pl serve --page`` in Chromium: every way to give an input, answers, keyboard, accessibility and widths."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path

import pytest
import torch

from fusion_pl.encoders import TinyText
from fusion_pl.fusion import Concat
from fusion_pl.module import FusionClassifier
from fusion_pl.serve.service import ServeOptions, Service
from fusion_pl.tasks import MultiLabel
from tests.serve.conftest import listening, write_checkpoint

CHROMIUM = "/usr/bin/chromium"
pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"there is no {CHROMIUM}")
FAKE_DEVICES = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
TOKEN = "a-token-of-a-test"
INPUT = 'the "words" <b>'  # an input of the second model


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FAKE_DEVICES)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory, sample):
    """A table of examples, and the files of its second row."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "a.png").write_bytes(sample["photo"])
    (folder / "a.wav").write_bytes(sample["voice"])
    (folder / "broken.png").write_bytes(b"not a picture")
    with open(folder / "examples.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "photo", "voice", "sensors"])
        writer.writerow(["first", "a high number", "", "", ""])
        writer.writerow(["second", sample["title"], "a.png", "a.wav", ""])
        writer.writerow(["third", "", "broken.png", "", ""])
    return folder


@pytest.fixture(scope="module")
def address(checkpoint, files):
    service = Service(ServeOptions(str(checkpoint), device="cpu", page=True, examples=str(files / "examples.csv")))
    with listening(service) as address:
        yield address


@pytest.fixture
def page(browser, address):
    """The page, which may not log errors or ask other servers."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(20_000)
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on(
        "request", lambda request: None if request.url.startswith((address, "data:")) else errors.append(request.url)
    )
    page.goto(address)
    page.get_by_label("title, text").wait_for()
    yield page
    context.close()
    assert not errors


def field(page, name):
    return page.get_by_role("group", name=name)


def predict(page):
    """Press the button, and return the body of the request."""
    with page.expect_request("**/predict") as request:
        page.get_by_role("button", name="Predict").click()
    return json.loads(request.value.post_data)


def check_answer(page, prediction):
    """Compare the page with a prediction, and wait for the explanation."""
    page.get_by_role("heading", name="Why?").wait_for()
    assert page.locator(".label").inner_text() == prediction.label
    rows = page.locator(".probabilities li").all_inner_texts()
    ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
    assert [" ".join(row.split()) for row in rows] == [f"{name} {100 * value:.1f} %" for name, value in ranked]


def content(data_url):
    return base64.b64decode(data_url.partition(",")[2])


def test_values_of_each_kind_are_predicted_and_explained(page, predictor, sample, files):
    page.get_by_label("title, text").fill(sample["title"])
    page.get_by_label("sensors, numbers").fill(".5, -1 +2.0")
    field(page, "photo").locator("input").first.set_input_files(files / "a.png")
    field(page, "photo").get_by_role("img").wait_for()
    field(page, "voice").locator("input").set_input_files(files / "a.wav")
    field(page, "voice").locator("audio").wait_for()
    field(page, "voice").get_by_text("0.2 s").wait_for()
    body = predict(page)
    assert content(body["photo"]) == sample["photo"]
    assert content(body["voice"]) == sample["voice"]
    check_answer(page, predictor.predict(sample))
    assert sorted(page.locator("tbody th").all_inner_texts()) == sorted(sample)
    page.get_by_role("button", name="Highlight what mattered").click()
    page.get_by_role("heading", name="What mattered").wait_for()
    assert page.locator("figure .text").first.inner_text() == sample["title"]
    assert page.get_by_role("img", name="photo, with the effects in colour").evaluate("image => image.naturalWidth") > 0
    assert page.locator("figure svg rect").count() > 0
    page.locator("figure").get_by_text("0.2 s", exact=True).wait_for()
    other = next(name for name in predictor.classes if name != predictor.predict(sample).label)
    page.get_by_label("Class").select_option(other)
    page.get_by_text(f"Contributions to the log-odds of {other}").wait_for()


def test_a_dropped_file_is_taken_and_can_be_removed(page, sample):
    drop = """(node, content) => {
        const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([bytes], "a.png", { type: "image/png" }));
        node.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
    }"""
    photo = field(page, "photo")
    photo.evaluate(drop, base64.b64encode(sample["photo"]).decode())
    photo.get_by_role("img").wait_for()
    assert content(predict(page)["photo"]) == sample["photo"]
    photo.get_by_role("button", name="Remove").click()
    assert photo.get_by_role("img").count() == 0


def test_an_example_is_filled_in_and_predicted(page, predictor, sample, files):
    assert page.locator("#examples button").all_inner_texts() == ["a high number", sample["title"]]
    page.locator("#examples button").nth(1).click()
    row = {"title": sample["title"], "photo": files / "a.png", "voice": files / "a.wav"}
    check_answer(page, predictor.predict(row))
    page.get_by_role("button", name="Clear").click()
    assert page.get_by_label("title, text").input_value() == ""
    assert page.locator(".label").count() == 0


def test_the_microphone_and_the_camera_are_read_as_files(page, predictor):
    voice, photo = field(page, "voice"), field(page, "photo")
    voice.get_by_role("button", name="Record").click()
    voice.get_by_role("button", name="Stop (0:01)").click()  # after a second
    voice.locator("audio").wait_for()
    photo.get_by_role("button", name="Take a photo").click()
    photo.get_by_role("button", name="Take the picture").click()
    photo.get_by_role("img").wait_for()
    body = predict(page)
    sound = predictor.processors["voice"].open(content(body["voice"]))
    assert 1 <= len(sound.samples) / sound.rate < 60
    assert 0 < float(sound.samples.abs().max()) <= 1
    picture = predictor.processors["photo"].open(content(body["photo"]))
    assert len(picture.getcolors(1_000_000)) > 10
    check_answer(page, predictor.predict({name: content(value) for name, value in body.items()}))
    voice.get_by_role("button", name="Record").click()
    voice.get_by_role("button", name="Stop (0:00)").wait_for()
    assert predict(page)["voice"] != body["voice"]  # the recording that was still running
    voice.get_by_role("button", name="Record").click()
    voice.get_by_role("button", name="Stop (0:00)").wait_for()
    page.get_by_role("button", name="Clear").click()
    voice.get_by_role("button", name="Record").wait_for()  # the microphone is off
    assert voice.locator("audio").count() == 0


def test_without_devices_or_a_server_the_page_says_what_to_do(browser, address):
    with browser.new_context() as context:
        page = context.new_page()
        page.add_init_script(
            "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', reason); };"
        )
        page.add_init_script("window.reason = 'NotAllowedError';")
        page.goto(address)
        field(page, "voice").get_by_role("button", name="Record").click()
        page.get_by_text("The browser may not use the microphone: allow it in the address bar.").wait_for()
        page.evaluate("window.reason = 'NotFoundError'")
        field(page, "photo").get_by_role("button", name="Take a photo").click()
        page.get_by_text("There is no camera: choose a file instead.").wait_for()
        page.get_by_label("title, text").fill("a")
        page.route("**/predict", lambda route: route.abort())
        page.get_by_role("button", name="Predict").click()
        page.get_by_text("The server does not answer: is it still running?").wait_for()
        page.add_init_script(
            "Object.defineProperty(navigator, 'mediaDevices', { value: undefined });"
        )  # as without https
        page.goto(address)
        with page.expect_file_chooser():
            field(page, "photo").get_by_role("button", name="Take a photo").click()
        assert field(page, "voice").get_by_role("button", name="Record").count() == 0


def test_mistakes_are_one_sentence_and_the_page_goes_on(page, files):
    alert = page.locator("#error")
    page.get_by_role("button", name="Predict").click()
    assert alert.inner_text() == "Fill in at least one of the inputs."
    for numbers in ("1, two", "1,,2,3"):
        page.get_by_label("sensors, numbers").fill(numbers)
        page.get_by_role("button", name="Predict").click()
        page.get_by_text("sensors cannot be read: expected numbers, separated by commas or spaces.").wait_for()
    page.get_by_label("sensors, numbers").fill("1, 2")
    page.get_by_role("button", name="Predict").click()
    page.get_by_text("2 numbers, expected 3 numbers").wait_for()
    page.get_by_label("sensors, numbers").fill("")
    field(page, "photo").locator("input").first.set_input_files(files / "broken.png")
    field(page, "photo").get_by_text("broken.png").wait_for()
    page.get_by_role("button", name="Predict").click()
    page.get_by_text("cannot be read as an image").wait_for()
    with open(files / "large.wav", "wb") as file:
        file.truncate(13_000_000)
    field(page, "voice").locator("input").set_input_files(files / "large.wav")
    field(page, "voice").get_by_text("large.wav has 13.0 MB, expected at most 12.0 MB").wait_for()
    field(page, "photo").get_by_role("button", name="Remove").click()
    page.get_by_label("title, text").fill("fine")
    page.get_by_role("button", name="Predict").click()
    page.get_by_role("heading", name="Why?").wait_for()
    assert not alert.is_visible()


def test_the_keyboard_is_enough(page, predictor):
    def tab_to(name):
        for _ in range(30):
            page.keyboard.press("Tab")
            focused = page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.textContent")
            if focused == name:
                return
        raise AssertionError(f"{name} cannot be reached")

    tab_to("title, text")
    page.keyboard.type("number 7")
    tab_to("Predict")
    page.keyboard.press("Enter")
    check_answer(page, predictor.predict({"title": "number 7"}))
    assert page.evaluate("document.activeElement.id") == "answer-title"  # which a screen reader then reads
    tab_to("Highlight what mattered")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="What mattered").wait_for()
    page.get_by_label("title, text").focus()
    page.keyboard.type("number 8")
    page.get_by_text("The inputs have changed since this answer.").wait_for()
    with page.expect_response("**/explain"):
        page.keyboard.press("Control+Enter")


def test_axe_finds_nothing_serious_and_a_phone_needs_no_horizontal_scrolling(page):
    from axe_playwright_python.sync_playwright import Axe

    page.set_viewport_size({"width": 390, "height": 844})
    page.locator("#examples button").nth(1).click()
    page.get_by_label("title, text").fill("a" * 300)
    page.get_by_role("button", name="Predict").click()
    page.get_by_role("button", name="Highlight what mattered").click()
    page.get_by_role("heading", name="What mattered").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        violations = Axe().run(page).response["violations"]
        serious = [one for one in violations if one["impact"] in ("serious", "critical")]
        assert not [(scheme, one["id"], one["nodes"][0]["html"]) for one in serious]


def test_other_names_a_task_with_several_labels_and_a_token(browser, tmp_path):
    torch.manual_seed(0)
    classes = [f"<i>{number}</i>" for number in range(10)]
    model = FusionClassifier({INPUT: TinyText(dim=8)}, Concat, classes, task=MultiLabel())
    path = write_checkpoint(tmp_path / "best.ckpt", model)
    service = Service(ServeOptions(str(path), device="cpu", page=True, token=TOKEN))
    with listening(service) as address, browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        for token, result in (("wrong-token-of-a-test", "This token is wrong."), (TOKEN, "10 classes")):
            page.get_by_label("This server asks for a token").fill(token)
            page.get_by_role("button", name="Continue").click()
            page.get_by_text(result).wait_for()
        page.get_by_label(f"{INPUT}, text").fill("<img src=x onerror=alert(1)>")
        page.get_by_role("button", name="Predict").click()
        page.get_by_role("button", name="Highlight what mattered").click()
        page.get_by_role("heading", name="What mattered").wait_for()
        assert page.locator("figure .text").inner_text() == "<img src=x onerror=alert(1)>"
        assert page.locator("figure .text img").count() == 0
        assert "2 more classes" in page.locator("summary").inner_text()
