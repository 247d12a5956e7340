"""Integrated gradients: completeness, positions, planted evidence, and what is refused."""

from __future__ import annotations

import copy
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fusion_pl import FusionClassifier, Predictor
from fusion_pl.encoders import ImageEncoder, TextEncoder, TinyAudio, TinyImage, TinyText
from fusion_pl.encoders.image import ResizeAndCrop
from fusion_pl.explain import Explainer, gradients
from fusion_pl.explain.gradients import TOLERANCE
from fusion_pl.fusion import Mean
from fusion_pl.types import UserError
from tests.encoders.models import save_image, save_text


def integrate(predictor, sample):
    return Explainer(predictor, method="integrated_gradients").explain(sample)


def small_model(encoder):
    torch.manual_seed(0)
    return Predictor(FusionClassifier({"input": encoder}, Mean, ["a", "b"]), device="cpu")


@pytest.mark.parametrize("family", ["tiny", "bert", "roberta", "distilbert", "clip-text"])
def test_effects_of_words_sum_to_the_change_from_embeddings_of_zeros(family, tmp_path):
    if family != "tiny":
        save_text(family, tmp_path)
    predictor = small_model(TinyText(dim=8) if family == "tiny" else TextEncoder(str(tmp_path), weights=False))
    sample = {"input": "the cat sat on the mat"}
    explanation = integrate(predictor, sample)
    zeros = copy.deepcopy(predictor)
    with torch.no_grad():
        zeros.model.encoders["input"].differentiable_input().weight.zero_()
    p = zeros.predict(sample).probabilities[explanation.target]
    change = explanation.log_odds - math.log(p / (1 - p))
    parts = explanation.inputs["input"].parts
    assert len(parts.spans) == 6
    assert sum(parts.spans.values()) + parts.remainder == pytest.approx(change, abs=TOLERANCE + 1e-4)
    assert parts.error <= TOLERANCE


@pytest.mark.parametrize("family", ["tiny", "vit"])
def test_effects_of_cells_sum_to_the_change_from_the_mean_colour(family, tmp_path):
    if family != "tiny":
        save_image(family, tmp_path)
    predictor = small_model(TinyImage(dim=16) if family == "tiny" else ImageEncoder(str(tmp_path), weights=False))
    size = predictor.processors["input"].image_size if family == "tiny" else predictor.processors["input"].size
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    pixels[: size // 2] //= 2
    pixels += (pixels.mean((0, 1)).round() - pixels.mean((0, 1)) > 0).astype(np.uint8)  # about a whole number
    explanation = integrate(predictor, {"input": Image.fromarray(pixels)})
    parts = explanation.inputs["input"].parts
    assert not parts.note
    flat = np.broadcast_to(pixels.mean((0, 1)).round().astype(np.uint8), pixels.shape).copy()
    p = predictor.predict({"input": flat}).probabilities[explanation.target]
    change = explanation.log_odds - math.log(p / (1 - p))
    assert sum(parts.spans.values()) + parts.remainder == pytest.approx(change, abs=0.02)
    assert parts.error <= TOLERANCE


def test_the_integral_of_a_sum_of_functions_is_the_change_of_each():
    """Both functions change mostly near the baseline, where equal steps miss the change."""
    x, scales = torch.tensor([[[1.0], [2.0]]], dtype=torch.double), torch.tensor([1e-3, 1e-2]).double()
    points = []

    def f(rows):
        points.append(len(rows))
        return (rows.squeeze(-1) / (rows.squeeze(-1) + scales)).sum(1)

    attributions, difference, error = gradients.integrate(f, x, torch.zeros_like(x))
    expected = x[0, :, 0] / (x[0, :, 0] + scales)
    assert difference == pytest.approx(expected.sum().item())
    assert attributions[:, 0].tolist() == pytest.approx(expected.tolist(), abs=2 * TOLERANCE)
    assert error == pytest.approx(abs(attributions.sum().item() - difference), abs=1e-6)
    assert error <= TOLERANCE * difference
    assert sum(points) < 1024


def test_a_step_has_no_gradients_to_integrate(monkeypatch):
    predictor = small_model(TinyText(dim=8))
    attributions, difference, error = gradients.integrate(
        lambda rows: ((rows > 0.3).double() + 0 * rows).sum((1, 2)), torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    )
    assert (attributions.sum().item(), difference, error) == (0, 1, 1)
    monkeypatch.setattr(gradients, "TOLERANCE", -1.0)
    monkeypatch.setattr(gradients, "MAX_POINTS", 64)
    parts = integrate(predictor, {"input": "two words"}).inputs["input"].parts
    assert not parts.spans
    assert "did not converge: with " in parts.note


def test_positions_of_bytes_are_those_of_their_characters():
    (positions,) = TinyText(max_tokens=6).processor.positions("aé猫b")
    assert positions.tolist() == [[0, 0], [0, 1], [1, 2], [1, 2], [2, 3], [2, 3]]


@pytest.mark.parametrize(
    ("processor", "size"),
    [
        (ResizeAndCrop(32, None, 2), (200, 100)),
        (ResizeAndCrop(32, 40, 2), (200, 100)),
        (ResizeAndCrop(32, 40, 2), (100, 250)),
        (ResizeAndCrop(32, 40, 2), (250, 50)),  # cropped to a ratio of 4 first
        (TinyImage(image_size=32).processor, (200, 100)),
    ],
)
def test_positions_of_pixels_are_where_their_values_come_from(processor, size):
    """The pixels of a ramp contain their row or column."""
    width, height = size
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    ramp = Image.fromarray(np.stack([rows, columns, columns], -1))
    pixels = next(iter(processor([ramp]).values()))[0].double().numpy()
    for axis, found in zip(processor.positions(ramp), (pixels[0].mean(1), pixels[1].mean(0)), strict=True):
        inner = slice(2, -2)  # at an edge, pixels outside the image do not count
        assert np.abs(axis.mean(1) - 0.5 - found)[inner].max() < 1.5


def test_other_inputs_say_that_gradients_are_not_available():
    predictor = small_model(TinyAudio(dim=8, num_layers=0))
    explanation = integrate(predictor, {"input": (np.ones(800, np.float32), 8000)})
    parts = explanation.inputs["input"].parts
    assert not parts.spans
    assert "not available for TinyAudio with WaveformProcessor: use --method occlusion" in parts.note
    assert explanation.inputs["input"].shapley


def test_without_captum_the_command_to_install_it_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    predictor = small_model(TinyText(dim=8))
    assert Explainer(predictor).explain({"input": "a"}).error is None
    with pytest.raises(UserError, match=r"need captum: pip install 'fusion-pl\[explain\]'"):
        Explainer(predictor, method="integrated_gradients")


def test_an_unknown_method_is_refused():
    with pytest.raises(UserError, match="no method 'rollout': expected one of occlusion, integrated_gradients"):
        Explainer(small_model(TinyText(dim=8)), method="rollout")
