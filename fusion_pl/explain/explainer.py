"""Explain predictions: the effect of each input, and of the parts of each input."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor

from fusion_pl.data.collate import Collate
from fusion_pl.explain.explanation import Explanation, InputExplanation, PartEffects
from fusion_pl.explain.gradients import integrated_gradients
from fusion_pl.explain.occlusion import occlusion
from fusion_pl.explain.scores import SampleScores
from fusion_pl.explain.shapley import shapley
from fusion_pl.extras import check_extra
from fusion_pl.messages import did_you_mean, join_names
from fusion_pl.predict import Predictor
from fusion_pl.types import Prediction, Sample, UserError

Method = Literal["occlusion", "integrated_gradients"]
METHODS = {"occlusion": occlusion, "integrated_gradients": integrated_gradients}


class Explainer:
    """Explain why a model gives a class its probability.

    Effects are differences of log-odds, ``log p - log(1 - p)``, which unlike probabilities can be added up.

    Args:
        predictor: trained model.
        target: name of the class that is explained; None = the predicted one, or, if the task decides for several or
            no labels, the most probable one.

    Raises:
        UserError: if the model has no such class.

    Example:
        >>> from fusion_pl import FusionClassifier
        >>> from fusion_pl.encoders import TinyText
        >>> from fusion_pl.fusion import Mean
        >>> predictor = Predictor(FusionClassifier({"title": TinyText()}, Mean, ["ham", "spam"]), device="cpu")
        >>> explanation = Explainer(predictor, target="spam").explain({"title": "hello"})
        >>> change = explanation.log_odds - explanation.log_odds_none
        >>> abs(explanation.inputs["title"].shapley - change) < 1e-6
        True
    """

    def __init__(self, predictor: Predictor, target: str | None = None, method: str = "occlusion") -> None:
        if target is not None and target not in predictor.classes:
            hint = did_you_mean(target, predictor.classes)
            raise UserError(f"{target!r} is not one of the classes {join_names(predictor.classes)}{hint}")
        if method not in METHODS:
            raise UserError(f"there is no method {method!r}: expected one of {join_names(METHODS)}")
        if method == "integrated_gradients":
            check_extra("explain", "integrated gradients need", "captum")
        self.predictor = predictor
        self.target = target
        self.method = METHODS[method]

    def explain(self, sample: Mapping[str, Any], open_paths: bool = True) -> Explanation:
        """Explain the prediction for one sample.

        Args:
            sample: name of the input -> value, as for ``Predictor.predict``.
            open_paths: whether a ``str`` may be the path of a file.
        """
        return self.explain_sample(self.predictor.open_sample("0", sample, open_paths))

    def explain_sample(self, sample: Sample, with_parts: bool = True) -> Explanation:
        """Explain the prediction for a sample whose values are opened.

        Args:
            sample: the sample.
            with_parts: whether to compute the effects of the parts of each input, which takes longest.
        """
        prediction = self._predict(sample)
        if prediction.error is not None:
            return Explanation(sample.id, prediction, error=prediction.error)
        scores, index = SampleScores.encode(self.predictor, sample), self._target_index(prediction)
        count = len(scores.names)
        one = torch.eye(count, dtype=torch.bool)
        logits = scores.of_subsets(torch.cat([one, ~one, one.new_tensor([[True] * count, [False] * count])]))
        log_odds = scores.log_odds(logits, index)
        if not log_odds.isfinite().all():
            error = "the model's output for this sample without some of its inputs is NaN or infinite"
            return Explanation(sample.id, prediction, error=error)
        probabilities = self.predictor.task.probabilities(logits.float())
        full, none = log_odds[-2].item(), log_odds[-1].item()
        result = shapley(lambda subsets: scores.log_odds(scores.of_subsets(subsets), index), count)
        errors, interaction_errors = result.standard_errors, result.interaction_errors
        inputs = {
            name: InputExplanation(
                shapley=result.values[i].item(),
                standard_error=None if errors is None else errors[i].item(),
                alone=probabilities[i, index].item(),
                decides_alone=self._decides(probabilities[i], index),
                gain=log_odds[i].item() - none,
                without=probabilities[count + i, index].item(),
                loss=full - log_odds[count + i].item(),
                parts=self.method(scores, name, index) if with_parts else PartEffects(),
                decision_without=self._decision(probabilities[count + i]).names,
            )
            for i, name in enumerate(scores.names)
        }
        pairs = {(scores.names[i], scores.names[j]): (i, j) for i, j in combinations(range(count), 2)}
        return Explanation(
            sample.id,
            prediction,
            target=self.predictor.classes[index],
            probability=probabilities[-2, index].item(),
            log_odds=full,
            log_odds_none=none,
            inputs=inputs,
            interactions={names: result.interactions[pair].item() for names, pair in pairs.items()},
            interaction_errors={names: interaction_errors[pair].item() for names, pair in pairs.items()}
            if interaction_errors is not None
            else {},
        )

    def _predict(self, sample: Sample) -> Prediction:
        return next(self.predictor.predict_batches([Collate(self.predictor.processors)([sample])]))

    def _target_index(self, prediction: Prediction) -> int:
        """Return the index of the explained class."""
        assert prediction.probabilities is not None
        names = [self.target] if self.target is not None else prediction.names or list(prediction.probabilities)
        return self.predictor.classes.index(max(names, key=prediction.probabilities.__getitem__))

    def _decides(self, probabilities: Tensor, index: int) -> bool:
        """Return whether the decision by these probabilities is, or contains, a class."""
        return self.predictor.classes[index] in self._decision(probabilities).names

    def _decision(self, probabilities: Tensor) -> Prediction:
        """Return the class or the labels that the task decides for."""
        return Prediction("", **self.predictor.task.prediction(probabilities, self.predictor.classes))
