"""Do methods that explain predictions find evidence that was planted in texts, images and sounds?

Prints the tables of docs/explain.md: of the methods of ``fusion-pl explain``, and of those that were left out.

    python -m benchmarks.explain
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import mean
from typing import NamedTuple

import numpy as np

from benchmarks.explain_candidates import ATTENTION_HEADS, CANDIDATES, attention_rollout
from benchmarks.planted import draw, is_evidence, train
from fusion_pl.explain import Explainer
from fusion_pl.explain.explainer import METHODS
from fusion_pl.fusion import Concat

INPUTS = ("text", "image", "audio")


class Row(NamedTuple):
    """One row of the tables: a method, the head of the model, and the inputs that it applies to."""

    method: str
    function: Callable
    head: type
    inputs: tuple[str, ...]


class Figures(NamedTuple):
    """Figures of one sample; the areas are means of the probability of the explained class."""

    on_evidence: float
    on_evidence_by_chance: float
    random_weights: float
    deletion: float
    deletion_random: float
    insertion: float
    insertion_random: float
    milliseconds: float


KEPT = [Row(method, function, Concat, INPUTS) for method, function in METHODS.items()]
LEFT_OUT = [
    *(Row(method, function, Concat, inputs) for method, (function, inputs) in CANDIDATES.items()),
    *(Row(f"attention roll-out, {head.__name__}", attention_rollout, head, INPUTS) for head in ATTENTION_HEADS),
]


def areas(predictor, name, value, target, order):
    """Return the areas under the deletion and the insertion curve of an order of the spans of a value.

    Both are means of the probability of a class: while the spans are left out one after the other, and while they
    return in the same order to a value in which all of them are left out.

    Source: "RISE", arXiv:1806.07421, section 4.3; parts instead of pixels, and means instead of the trapezoidal rule.
    """
    occlude, counts = predictor.processors[name].occlude, range(len(order) + 1)
    values = [occlude(value, order[:count]) for count in counts] + [occlude(value, order[count:]) for count in counts]
    probabilities = [one.probabilities[target] for one in predictor.predict([{name: one} for one in values])]
    return mean(probabilities[: len(counts)]), mean(probabilities[len(counts) :])


def by_effect(effects):
    """Return the spans, the one with the greatest effect first."""
    return sorted(effects, key=effects.get, reverse=True)


def at_random(effects, seed):
    """Return the spans in a random order."""
    spans = list(effects)
    return [spans[i] for i in np.random.default_rng(seed).permutation(len(spans))]


def rank_correlation(effects, others):
    """Return Spearman's correlation of the absolute effects of two models."""
    ranks = [np.argsort(np.argsort(np.abs(list(values.values())))) for values in (effects, others)]
    return float(np.corrcoef(*ranks)[0, 1])


def explain(predictor, function, sample, target=None):
    """Return the explained class and the effects of the parts of the only input of a sample."""
    explainer = Explainer(predictor, target)
    explainer.method = function
    explanation = explainer.explain(sample)
    (effect,) = explanation.inputs.values()
    return explanation.target, effect.parts.spans


def measure(predictor, untrained, function, name, samples) -> Iterator[Figures | None]:
    """Yield the figures of one method and input for each sample; None if the method has no result."""
    for number, (inputs, evidence) in enumerate(samples):
        value = inputs[name]
        begin = time.perf_counter()
        target, effects = explain(predictor, function, {name: value})
        milliseconds = 1000 * (time.perf_counter() - begin)
        if not effects:
            yield None
            continue
        _, others = explain(untrained, function, {name: value}, target)
        yield Figures(
            is_evidence(evidence[name], by_effect(effects)[0]),
            mean(is_evidence(evidence[name], span) for span in effects),
            rank_correlation(effects, others) if others else float("nan"),
            *(
                area
                for pair in zip(
                    areas(predictor, name, value, target, by_effect(effects)),
                    areas(predictor, name, value, target, at_random(effects, number)),
                    strict=True,
                )
                for area in pair
            ),
            milliseconds,
        )


def print_table(rows, seeds, count, head_models):
    """Measure and print one table."""
    print("| method | input | samples | on the evidence, per seed | at random | random weights |", end="")
    print(
        " deletion (random order) | insertion (random order) | ms per sample |\n|---|---|---|---|---|---|---|---|---|"
    )
    for row in rows:
        for name in row.inputs:
            by_seed = []
            for seed in range(seeds):
                rng = np.random.default_rng(2000 + seed)
                samples = [draw(rng, number % 2) for number in range(count)]
                by_seed.append([*measure(*head_models(row.head, seed), row.function, name, samples)])
            found = [[figures for figures in results if figures is not None] for results in by_seed]
            figures = [one for results in found for one in results]
            if not figures:
                continue
            hits = ", ".join(f"{100 * mean(one.on_evidence for one in results):.0f}" for results in found if results)
            one = Figures(*np.nanmean(np.array(figures, float), axis=0))
            print(
                f"| {row.method} | {name} | {len(figures)} of {seeds * count} | {hits} % |"
                f" {one.on_evidence_by_chance:.1%} | {one.random_weights:.2f} |"
                f" {one.deletion:.2f} ({one.deletion_random:.2f}) | {one.insertion:.2f} ({one.insertion_random:.2f}) |"
                f" {one.milliseconds:.0f} |",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20, help="samples per seed")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    trained = {}

    def head_models(head, seed):
        if (head, seed) not in trained:
            trained[head, seed] = train(seed, head=head), train(seed + 1000, epochs=0, head=head)
        return trained[head, seed]

    print("The methods of fusion-pl explain:\n")
    print_table(KEPT, options.seeds, options.samples, head_models)
    print("\nMethods that were left out:\n")
    print_table(LEFT_OUT, options.seeds, options.samples, head_models)


if __name__ == "__main__":
    main()
