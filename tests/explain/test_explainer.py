"""``Explainer``: the effect of each input, for every head."""

from __future__ import annotations

import json
import math
from itertools import combinations, permutations

import pytest
import torch
from PIL import Image

import fusion_pl.fusion
from fusion_pl import FusionClassifier, Predictor
from fusion_pl.encoders import TinyAudio, TinyImage, TinyText
from fusion_pl.explain import Explainer
from fusion_pl.explain.explanation import Explanation, InputExplanation, PartEffects
from fusion_pl.fusion import Average, Concat, Fusion, Mean, ProductOfExperts, SelfAttention
from fusion_pl.tasks import MultiLabel
from fusion_pl.types import Prediction, UserError, Waveform

HEADS = [
    head for name in fusion_pl.fusion.__all__ if isinstance(head := getattr(fusion_pl.fusion, name), type)
    and issubclass(head, Fusion) and head is not Fusion
]  # fmt: skip
SAMPLE = {
    "text": "two words",
    "image": Image.linear_gradient("L"),
    "audio": Waveform(torch.sin(torch.arange(1600.0)), 8000),
}


def build(head=Concat, classes=("a", "b", "c"), **options):
    torch.manual_seed(0)
    encoders = {"text": TinyText(dim=8), "image": TinyImage(dim=16), "audio": TinyAudio(dim=8, num_layers=1)}
    return Predictor(FusionClassifier(encoders, head, list(classes), **options), device="cpu")


def log_odds_of(predictor, names, target):
    """The log-odds if the sample has only some inputs, through another path: the prediction of a smaller sample."""
    model = predictor.model
    opened = predictor.open_sample("0", SAMPLE)
    from fusion_pl.data.collate import Collate

    batch = Collate(predictor.processors)([opened])
    with torch.no_grad():
        logits = model.fuse(model.encode(batch), subset=names).logits.double()
    p = predictor.task.probabilities(logits)[0, predictor.classes.index(target)]
    return (p / (1 - p)).log().item()


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_shapley_values_of_every_head_equal_the_mean_over_all_orders(head):
    predictor = build(head)
    explanation = Explainer(predictor).explain(SAMPLE)
    assert explanation.error is None
    prediction = predictor.predict(SAMPLE)
    assert (explanation.target, explanation.probability) == (
        prediction.label,
        pytest.approx(prediction.probability, abs=1e-5),
    )
    subsets = [names for size in range(len(SAMPLE) + 1) for names in combinations(SAMPLE, size)]
    log_odds = {frozenset(names): log_odds_of(predictor, names, explanation.target) for names in subsets}
    totals = dict.fromkeys(SAMPLE, 0.0)
    for order in permutations(SAMPLE):
        for place, name in enumerate(order):
            totals[name] += log_odds[frozenset(order[: place + 1])] - log_odds[frozenset(order[:place])]
    for name, total in totals.items():
        assert explanation.inputs[name].shapley == pytest.approx(total / 6, abs=1e-4)
    values = sum(effect.shapley for effect in explanation.inputs.values())
    assert values == pytest.approx(explanation.log_odds - explanation.log_odds_none, abs=1e-4)


def test_alone_and_without_are_the_predictions_of_smaller_samples():
    predictor = build()
    explanation = Explainer(predictor, target="b").explain(SAMPLE)
    for name, effect in explanation.inputs.items():
        only = predictor.predict({name: SAMPLE[name]})
        others = predictor.predict({other: SAMPLE[other] for other in SAMPLE if other != name})
        assert effect.alone == pytest.approx(only.probabilities["b"], abs=1e-5)
        assert effect.without == pytest.approx(others.probabilities["b"], abs=1e-5)
        assert effect.decides_alone == (only.label == "b")


def test_the_inputs_of_a_product_of_experts_add_their_log_ratios():
    """Two classes: the log-odds are those of the prior, plus the difference of the log-odds of each expert."""
    predictor = build(ProductOfExperts, classes=("a", "b"))
    head = predictor.model.fusion
    with torch.no_grad():
        head.prior.copy_(torch.tensor([0.3, -0.2]))
    explanation = Explainer(predictor, target="a").explain(SAMPLE)
    assert explanation.log_odds_none == pytest.approx(0.5, abs=1e-6)
    for name, effect in explanation.inputs.items():
        alone = predictor.predict({name: SAMPLE[name]}).probabilities["a"]
        assert effect.shapley == pytest.approx(math.log(alone / (1 - alone)) - 0.5, abs=1e-4)
        assert effect.shapley == pytest.approx(effect.gain, abs=1e-5)
    assert max(map(abs, explanation.interactions.values())) < 1e-5
    assert explanation.kind == "independent"


def test_a_missing_input_has_no_value_and_changes_nothing():
    predictor = build()
    both = {name: SAMPLE[name] for name in ("text", "audio")}
    explanation = Explainer(predictor).explain(both | {"image": None})
    assert list(explanation.inputs) == ["text", "audio"]
    assert list(explanation.interactions) == [("text", "audio")]
    assert explanation == Explainer(predictor).explain(both)


def test_more_than_five_inputs_are_sampled():
    names = [f"text_{number}" for number in range(7)]
    torch.manual_seed(0)
    model = FusionClassifier({name: TinyText(dim=8) for name in names}, Concat, ["a", "b"])
    explanation = Explainer(Predictor(model, device="cpu")).explain({name: name for name in names})
    effects = explanation.inputs.values()
    assert all(effect.standard_error > 0 for effect in effects)
    total = explanation.log_odds - explanation.log_odds_none
    assert sum(effect.shapley for effect in effects) == pytest.approx(total, abs=1e-4)
    assert len(explanation.interaction_errors) == 21


@pytest.mark.parametrize("head", [Concat, *(head for head in HEADS if head.several_labels)])
def test_a_label_of_several_is_explained_by_its_logit(head):
    predictor = build(head, classes=["crime", "drama", "war"], task=MultiLabel())
    explanation = Explainer(predictor).explain(SAMPLE)
    probabilities = predictor.predict(SAMPLE).probabilities
    assert explanation.target == max(probabilities, key=probabilities.get)
    odds = probabilities[explanation.target] / (1 - probabilities[explanation.target])
    assert explanation.log_odds == pytest.approx(math.log(odds), abs=1e-4)
    values = sum(effect.shapley for effect in explanation.inputs.values())
    assert values == pytest.approx(explanation.log_odds - explanation.log_odds_none, abs=1e-4)


@pytest.mark.parametrize("target", ["crime", "drama", "war"])
@pytest.mark.parametrize("bias", [-2.0, 0.0, 2.0])
def test_inputs_that_give_a_label_alone_decide_it_and_raise_its_probability_considerably(bias, target):
    """With the bias of 2 the model predicts each label without any input, so that an input need not be the reason."""
    predictor = build(Mean, classes=["crime", "drama", "war"], task=MultiLabel())
    with torch.no_grad():
        last = predictor.model.fusion.classifier[-1]
        last.weight.mul_(8)
        last.bias.fill_(bias)
    explanation = Explainer(predictor, target=target).explain(SAMPLE)
    none, total = (log_odds_of(predictor, names, target) for names in ((), tuple(SAMPLE)))
    expected = []
    for name in SAMPLE:
        alone = log_odds_of(predictor, (name,), target)
        orders = list(permutations(SAMPLE))
        steps = [(order[: order.index(name)], order[: order.index(name) + 1]) for order in orders]
        effects = [log_odds_of(predictor, b, target) - log_odds_of(predictor, a, target) for a, b in steps]
        gain = alone - none
        if alone >= 0 and gain > 0 and gain >= abs(total - none) / 4 and sum(effects) > 0:
            expected.append(name)
    assert explanation.sufficient_inputs == expected


def test_the_sentence_never_says_that_an_input_gives_a_class_and_lowers_its_probability():
    """The numbers of a new user: the text alone has probability 0.518, and a Shapley value below 0."""

    def effect(shapley, alone, gain):
        return InputExplanation(shapley, None, alone, alone >= 0.5, gain, 0.5, 0.0, PartEffects(), [])

    inputs = {"text": effect(-0.63, 0.518, 0.07), "image": effect(1.4, 0.8, 1.39), "audio": effect(1.1, 0.75, 1.1)}
    prediction = Prediction("0", labels=["nature"], probabilities={"nature": 0.87})
    explanation = Explanation("0", prediction, "nature", 0.87, 1.87, 0.0, inputs)
    assert "image and audio each give nature; text lowers its probability." in explanation.summary
    assert "by text +0.07, image +1.39, audio +1.10 (sum +2.56), together by +1.87" in explanation.summary
    no_reason = Explanation(
        "0", prediction, "nature", 0.87, 1.87, 0.0, {"text": inputs["text"]} | {"image": effect(2.5, 0.51, 0.04)}
    )
    assert "together by +1.87; text lowers its probability." in no_reason.summary  # each decides, none is a reason


def test_certain_predictions_have_finite_log_odds():
    """In single precision the probability is 1, and p / (1 - p) is infinite."""
    predictor = build(Mean)
    with torch.no_grad():
        predictor.model.fusion.classifier[-1].bias.copy_(torch.tensor([60.0, 0.0, 0.0]))
    explanation = Explainer(predictor).explain(SAMPLE)
    assert explanation.probability == 1.0
    assert 50 < explanation.log_odds < 70


@pytest.mark.parametrize("head", [Average, SelfAttention])
def test_inputs_with_learned_embeddings_of_missing_inputs(head):
    predictor = build(head, missing="token")
    explanation = Explainer(predictor).explain(SAMPLE)
    values = sum(effect.shapley for effect in explanation.inputs.values())
    assert values == pytest.approx(explanation.log_odds - explanation.log_odds_none, abs=1e-4)


def test_an_explanation_is_plain_data():
    explanation = Explainer(build()).explain(SAMPLE)
    record = json.loads(json.dumps(explanation.as_dict()))
    assert record["explained_class"] == explanation.target
    assert set(record["inputs"]) == set(SAMPLE)


@pytest.mark.parametrize(
    ("sample", "match"),
    [
        ({}, "none of the model's inputs"),
        ({"image": "nowhere.png"}, "nowhere.png"),
        ({"photo": 1}, "this model has no input 'photo'"),
    ],
)
def test_a_sample_that_cannot_be_used_gets_an_error(sample, match):
    explanation = Explainer(build()).explain(sample)
    assert match in explanation.error
    assert explanation.as_dict() == {"id": "0", "error": explanation.error}


def test_an_unknown_class_is_refused():
    with pytest.raises(UserError, match="'dorg' is not one of the classes cat, dog; did you mean dog"):
        Explainer(build(classes=["cat", "dog"]), target="dorg")
