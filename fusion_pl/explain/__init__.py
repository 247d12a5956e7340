"""``fusion-pl explain`` and ``Explainer``: which inputs, and which parts of them, a prediction depends on."""

from fusion_pl.explain.explainer import Explainer
from fusion_pl.explain.explanation import Explanation, InputExplanation

__all__ = ["Explainer", "Explanation", "InputExplanation"]
