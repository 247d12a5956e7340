"""What is known about the reasons for one prediction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fusion_pl.processors.base import Span
from fusion_pl.types import Prediction

SIMILAR = 0.25  # share of the log-odds below which inputs are said to contribute independently
SUFFICIENT = 0.25  # share of the change of the log-odds by all inputs, from which on one of them can give the class
NEGLIGIBLE = 0.05  # share of the largest Shapley value below which a negative one is not mentioned


@dataclass(frozen=True)
class PartEffects:
    """Effects of the parts of a value on the log-odds of the explained class.

    Attributes:
        spans: part of the value -> effect, see ``Processor.spans``.
        note: sentence that says why there are no effects; empty if there are.
        remainder: effect that belongs to no part, such as that of special tokens.
        error: absolute difference between the sum of the effects and the change of the log-odds to which the method
            promises to add up; None if it promises nothing.
    """

    spans: dict[Span, float] = field(default_factory=dict)
    note: str = ""
    remainder: float = 0.0
    error: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the effects as plain data, for JSON."""
        spans = [{"span": span, "effect": effect} for span, effect in self.spans.items()]
        return vars(self) | {"spans": spans}


@dataclass(frozen=True)
class InputExplanation:
    """The effect of one input on the log-odds of the explained class.

    Attributes:
        shapley: Shapley value.
        standard_error: standard error of the Shapley value; None if it is exact.
        alone: probability of the class with this input only.
        decides_alone: whether the decision with this input only is, or contains, the explained class.
        gain: log-odds with this input only, minus those without any input.
        without: probability of the class without this input.
        loss: log-odds with all inputs, minus those without this input.
        parts: effect of each part of the value.
        decision_without: names of the class or the labels that are predicted without this input.
    """

    shapley: float
    standard_error: float | None
    alone: float
    decides_alone: bool
    gain: float
    without: float
    loss: float
    parts: PartEffects
    decision_without: list[str]


@dataclass(frozen=True)
class Explanation:
    """Why a model gives a class its probability.

    Attributes:
        id: id of the sample.
        prediction: the prediction.
        target: name of the explained class.
        probability: its probability.
        log_odds: its log-odds.
        log_odds_none: its log-odds if all inputs are missing.
        inputs: name of the input -> its effect, for the inputs that the sample has.
        interactions: pair of inputs -> Shapley interaction index.
        interaction_errors: pair of inputs -> standard error; empty if the interactions are exact.
        error: message that says why there is no explanation; None if there is one.
    """

    id: str
    prediction: Prediction
    target: str = ""
    probability: float = 0.0
    log_odds: float = 0.0
    log_odds_none: float = 0.0
    inputs: dict[str, InputExplanation] = field(default_factory=dict)
    interactions: dict[tuple[str, str], float] = field(default_factory=dict)
    interaction_errors: dict[tuple[str, str], float] = field(default_factory=dict)
    error: str | None = None

    @property
    def synergy(self) -> float:
        """Log-odds that the inputs add together, beyond the sum of what each adds alone."""
        return self.log_odds - self.log_odds_none - sum(effect.gain for effect in self.inputs.values())

    @property
    def kind(self) -> str:
        """``single``: one input; ``independent``, ``synergy`` or ``redundancy``: how several inputs contribute.

        The synergy is compared with the sum of the inputs' absolute gains, and with the gain of all inputs: at most a
        quarter of the larger one is ``independent``.
        """
        if len(self.inputs) == 1:
            return "single"
        gains = sum(abs(effect.gain) for effect in self.inputs.values())
        if abs(self.synergy) <= SIMILAR * max(gains, abs(self.log_odds - self.log_odds_none)):
            return "independent"
        return "synergy" if self.synergy * (self.log_odds - self.log_odds_none) > 0 else "redundancy"

    @property
    def sufficient_inputs(self) -> list[str]:
        """Names of the inputs that give the class alone.

        The decision with such an input only is, or contains, the class; its gain is at least a quarter of the absolute
        change of the log-odds by all inputs; and its Shapley value is positive. So an input is not the reason for a
        class that the model would predict without it.
        """
        least = SUFFICIENT * abs(self.log_odds - self.log_odds_none)
        return [
            name
            for name, effect in self.inputs.items()
            if effect.decides_alone and effect.gain > 0 and effect.gain >= least and effect.shapley > 0
        ]

    @property
    def summary(self) -> str:
        """One sentence about the inputs."""
        if self.error is not None:
            return self.error
        total = self.log_odds - self.log_odds_none
        gains = ", ".join(f"{name} {effect.gain:+.2f}" for name, effect in self.inputs.items())
        gains += f" (sum {sum(effect.gain for effect in self.inputs.values()):+.2f})"
        if self.kind == "single":
            name = next(iter(self.inputs))
            return f"{name} is the only input; it changes the log-odds of {self.target} by {total:+.2f}."
        if alone := self.sufficient_inputs:
            deciding = f"; {_join(alone)} {'alone gives' if len(alone) == 1 else 'each give'} {self.target}"
        else:
            is_decided = any(effect.decides_alone for effect in self.inputs.values())
            deciding = "" if is_decided else f"; no input alone gives {self.target}"
        relation = {
            "independent": "the inputs contribute nearly independently",
            "synergy": "the inputs are needed together",
            "redundancy": "the inputs repeat each other",
        }[self.kind]
        largest = max(abs(effect.shapley) for effect in self.inputs.values())
        opposed = [name for name, effect in self.inputs.items() if effect.shapley < -NEGLIGIBLE * largest]
        against = f"; {_join(opposed)} {'lowers' if len(opposed) == 1 else 'lower'} its probability" if opposed else ""
        text = f"{relation}: alone they change the log-odds by {gains}, together by {total:+.2f}{deciding}{against}."
        return text[0].upper() + text[1:]

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation as plain data, for JSON."""
        if self.error is not None:
            return {"id": self.id, "error": self.error}
        return {
            "id": self.id,
            "label": self.prediction.label if self.prediction.labels is None else self.prediction.labels,
            "explained_class": self.target,
            "probability": self.probability,
            "log_odds": self.log_odds,
            "log_odds_without_inputs": self.log_odds_none,
            "kind": self.kind,
            "synergy": self.synergy,
            "summary": self.summary,
            "inputs": {name: vars(effect) | {"parts": effect.parts.as_dict()} for name, effect in self.inputs.items()},
            "interactions": [
                {"inputs": list(pair), "value": value, "standard_error": self.interaction_errors.get(pair)}
                for pair, value in self.interactions.items()
            ],
        }


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
