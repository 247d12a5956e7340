"""Effects of the parts of a value: spans, occlusion, and whether planted evidence is found."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from statistics import mean

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.explain import areas, at_random, by_effect, explain, rank_correlation
from benchmarks.planted import draw, is_evidence, train
from fusion_pl.data.collate import process_values
from fusion_pl.encoders import FeatureEncoder, TinyAudio, TinyImage, TinyText
from fusion_pl.explain import Explainer, scores
from fusion_pl.explain.explainer import METHODS
from fusion_pl.fusion import Concat
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor
from fusion_pl.types import Waveform

INPUTS = ("text", "image", "audio")
VALUES = [
    (TinyText(), "one two  three\nfour"),
    (TinyText(), " 猫がいる"),
    (TinyImage(), Image.linear_gradient("L").resize((33, 21))),
    (TinyImage(), Image.new("RGB", (3, 1), "red")),
    (TinyAudio(), Waveform(torch.arange(1.0, 8001) / 8001, 8000)),
    (TinyAudio(), Waveform(torch.ones(10), 8000)),
    (FeatureEncoder(4), torch.arange(1.0, 5)),
    (FeatureEncoder(2), torch.arange(1.0, 13).view(6, 2)),
]


@pytest.mark.parametrize(("encoder", "value"), VALUES)
def test_spans_do_not_overlap_and_cover_the_value(encoder, value):
    spans = encoder.processor.spans(value)
    sizes = [np.prod([end - start for start, end in span]) for span in spans]
    if isinstance(value, str):
        total = len(value.lstrip())
    elif isinstance(value, Image.Image):
        total = value.width * value.height
    else:
        total = len(value.samples) / value.rate if isinstance(value, Waveform) else len(value)
    assert min(sizes) > 0
    assert sum(sizes) == pytest.approx(total)
    for one, other in pairwise(spans):
        assert any(end <= start2 or end2 <= start for (start, end), (start2, end2) in zip(one, other, strict=True))


@pytest.mark.parametrize(("encoder", "value"), VALUES)
def test_an_occluded_value_lacks_its_spans_and_is_a_copy(encoder, value):
    processor = encoder.processor
    before = copy.deepcopy(value)
    spans = processor.spans(value)
    occluded = [processor.occlude(value, [span]) for span in spans]
    everything = processor.occlude(value, spans)
    if isinstance(value, str):
        assert [len(value) - len(text) for text in occluded] == [end - start for ((start, end),) in spans]
        assert not everything.strip()
    elif isinstance(value, Image.Image):
        assert len(everything.getcolors()) == 1
        assert value.tobytes() == before.tobytes()
    elif isinstance(value, Waveform):
        assert not everything.samples.any()
        assert torch.equal(value.samples, before.samples)
        assert sum(int((clip.samples == 0).sum()) for clip in occluded) == len(value.samples)
    else:
        assert torch.equal(everything, processor.mean.expand_as(value).float())
        assert torch.equal(value, before)
    assert all(tensor.isfinite().all() for tensor in processor([*occluded, everything]).values())


def test_words_of_a_long_text_are_grouped():
    spans = TinyText().processor.spans("word " * 300, limit=64)
    assert len(spans) == 60
    assert spans[-1] == ((1475, 1500),)


def test_a_text_of_one_word_consists_of_its_characters():
    """Such as a name, a number or a code: whether the word counts is what the effect of the input says."""
    assert TinyText().processor.spans(" three ") == [((i, i + 1),) for i in range(1, 5)] + [((5, 7),)]
    assert TinyText().processor.spans("x" * 100) == [((2 * i, 2 * i + 2),) for i in range(50)]
    assert TinyText().processor.spans("  ") == TinyText().processor.spans("") == []


@pytest.fixture(scope="module")
def predictor():
    return train(seed=0, size=288)


@pytest.fixture(scope="module")
def untrained():
    return train(seed=1, epochs=0)


# Number of samples of each method and input; integrated gradients take seconds.
CASES = [("occlusion", "text", 20), ("occlusion", "image", 20), ("occlusion", "audio", 20)]
CASES += [("integrated_gradients", "text", 10), ("integrated_gradients", "image", 10)]
every_case = pytest.mark.parametrize("explained", CASES, indirect=True, ids=lambda case: f"{case[0]}-{case[1]}")


@pytest.fixture(scope="module")
def explained(request, predictor):
    """Function and input of a method; evidence, value, explained class and effects of samples with this input only."""
    method, name, count = request.param
    rng, found = np.random.default_rng(7), []
    for row in range(count):
        inputs, evidence = draw(rng, row % 2)
        found.append((evidence[name], inputs[name], *explain(predictor, METHODS[method], {name: inputs[name]})))
    return METHODS[method], name, found


def test_every_method_is_tested_with_every_input_that_it_supports(predictor):
    inputs, _ = draw(np.random.default_rng(0), 0)
    supported = {
        (method, name)
        for method, function in METHODS.items()
        for name in INPUTS
        if explain(predictor, function, {name: inputs[name]})[1]
    }
    assert supported == {(method, name) for method, name, _ in CASES}


@every_case
def test_the_greatest_effect_is_on_planted_evidence(explained):
    _, _, found = explained
    hits = [is_evidence(evidence, by_effect(effects)[0]) for evidence, _, _, effects in found]
    chance = [mean(is_evidence(evidence, span) for span in effects) for evidence, _, _, effects in found]
    assert mean(hits) >= 0.9
    assert mean(chance) < 0.4


@every_case
def test_effects_of_a_model_with_random_weights_are_others(explained, untrained):
    """The sanity check of arXiv:1810.03292: the rank correlation with the effects of the trained model is low."""
    function, name, found = explained
    correlations = []
    for _, value, target, effects in found:
        _, others = explain(untrained, function, {name: value}, target)
        correlations += [rank_correlation(effects, others)] if others else []
    assert len(correlations) >= len(found) / 2
    assert mean(correlations) < 0.5


@every_case
def test_deletion_and_insertion_by_effects_beat_a_random_order(explained, predictor):
    _, name, found = explained
    by_effects, random = [], []
    for row, (_, value, target, effects) in enumerate(found[:10]):
        by_effects.append(areas(predictor, name, value, target, by_effect(effects)))
        random.append(areas(predictor, name, value, target, at_random(effects, row)))
    (deletion, insertion), (random_deletion, random_insertion) = (
        map(mean, zip(*pairs, strict=True)) for pairs in (by_effects, random)
    )
    assert deletion < 0.8 * random_deletion
    assert 1 - insertion < 0.8 * (1 - random_insertion)


@pytest.mark.parametrize("name", INPUTS)
def test_parts_inserted_in_an_order_are_those_deleted_in_the_reverse_order(name, predictor):
    value = draw(np.random.default_rng(5), 1)[0][name]
    order = at_random(dict.fromkeys(predictor.processors[name].spans(value)), seed=0)
    deletion, insertion = areas(predictor, name, value, "high", order)
    assert areas(predictor, name, value, "high", order[::-1]) == pytest.approx((insertion, deletion), abs=1e-5)
    whole = predictor.predict({name: value}).probabilities["high"]
    assert areas(predictor, name, value, "high", []) == pytest.approx((whole, whole), abs=1e-5)


@pytest.mark.parametrize("name", INPUTS)
def test_an_effect_is_the_difference_of_two_predictions(name, predictor):
    """Of the last span, with its neighbours if it is a piece of a signal."""
    value = draw(np.random.default_rng(7), 0)[0][name]
    explanation = Explainer(predictor).explain({name: value})
    processor, effects = predictor.processors[name], explanation.inputs[name].parts.spans
    spans = list(effects)
    block = {"text": spans[-1:], "audio": spans[-2:], "image": [spans[i] for i in (-10, -9, -2, -1)]}[name]
    probabilities = predictor.predict({name: processor.occlude(value, block)}).probabilities
    p = probabilities.pop(explanation.target)
    assert effects[spans[-1]] == pytest.approx(
        explanation.log_odds - math.log(p / sum(probabilities.values())), abs=1e-3
    )


def test_pictures_without_a_cell_are_made_a_few_at_a_time(monkeypatch):
    """65 copies of a picture of 20 megapixels would take 4 GB."""
    image = Image.linear_gradient("L").resize((33, 21))
    torch.manual_seed(0)
    predictor = Predictor(FusionClassifier({"image": TinyImage(dim=8)}, Concat, ["a", "b"]), device="cpu")
    expected = Explainer(predictor, target="a").explain({"image": image}).inputs["image"].parts.spans
    sizes = []

    def process(processor, name, values, ids):
        sizes.append(len(values))
        return process_values(processor, name, values, ids)

    monkeypatch.setattr(scores, "MAX_BYTES", 3 * 33 * 21)
    monkeypatch.setattr(scores, "process_values", process)
    found = Explainer(predictor, target="a").explain({"image": image}).inputs["image"].parts.spans
    assert (max(sizes), sum(sizes)) == (3, len(found) + 1)
    assert list(found) == list(expected)
    assert list(found.values()) == pytest.approx(list(expected.values()), abs=1e-5)
