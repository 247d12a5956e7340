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

from benchmarks.explain import deletion_area, draw, is_evidence, random_order_area, rank_correlation, train
from fusion_pl.encoders import FeatureEncoder, TinyAudio, TinyImage, TinyText
from fusion_pl.explain import Explainer
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
        assert len(set(everything.get_flattened_data())) == 1
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


@pytest.fixture(scope="module")
def predictor():
    return train(seed=0, size=288)


@pytest.fixture(scope="module")
def explained(predictor):
    """Name of the input -> evidence, value and explanation of 30 samples that have this input only."""
    rng, explainer = np.random.default_rng(7), Explainer(predictor)
    found = {name: [] for name in INPUTS}
    for row in range(30):
        inputs, evidence = draw(rng, row % 2)
        for name in INPUTS:
            found[name].append((evidence[name], inputs[name], explainer.explain({name: inputs[name]})))
    return found


@pytest.mark.parametrize("name", INPUTS)
def test_the_greatest_effect_is_on_planted_evidence(name, explained):
    hits, chance = [], []
    for evidence, _, explanation in explained[name]:
        effects = explanation.inputs[name].parts.spans
        hits.append(is_evidence(evidence, max(effects, key=effects.get)))
        chance.append(mean(is_evidence(evidence, span) for span in effects))
    assert mean(hits) >= 0.9
    assert mean(chance) < 0.4


@pytest.mark.parametrize("name", INPUTS)
def test_effects_of_a_model_with_random_weights_are_others(name, predictor, explained):
    """The sanity check of arXiv:1810.03292: the rank correlation with the effects of the trained model is low."""
    untrained = train(seed=1, epochs=0)
    correlations = []
    for _, value, explanation in explained[name]:
        trained_effects = explanation.inputs[name].parts.spans
        other = Explainer(untrained, explanation.target).explain({name: value}).inputs[name].parts.spans
        correlations.append(rank_correlation(trained_effects, other))
    assert mean(correlations) < 0.5


@pytest.mark.parametrize("name", INPUTS)
def test_deleting_parts_by_their_effects_lowers_the_probability_faster_than_at_random(name, predictor, explained):
    areas, random_areas = [], []
    for row, (_, value, explanation) in enumerate(explained[name][:10]):
        effects = explanation.inputs[name].parts.spans
        areas.append(deletion_area(predictor, name, value, explanation.target, effects))
        random_areas.append(random_order_area(predictor, name, value, explanation.target, effects, seed=row))
    assert mean(areas) < 0.8 * mean(random_areas)


@pytest.mark.parametrize("name", INPUTS)
def test_an_effect_is_the_difference_of_two_predictions(name, predictor, explained):
    """Of the last span, with its neighbours if it is a piece of a signal."""
    _, value, explanation = explained[name][0]
    processor, effects = predictor.processors[name], explanation.inputs[name].parts.spans
    spans = list(effects)
    block = {"text": spans[-1:], "audio": spans[-2:], "image": [spans[i] for i in (-10, -9, -2, -1)]}[name]
    probabilities = predictor.predict({name: processor.occlude(value, block)}).probabilities
    p = probabilities.pop(explanation.target)
    assert effects[spans[-1]] == pytest.approx(
        explanation.log_odds - math.log(p / sum(probabilities.values())), abs=1e-3
    )
