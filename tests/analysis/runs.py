"""Runs of a comparison that never took place."""

from __future__ import annotations

import itertools

from fusion_pl.analysis.result import Result

INPUTS = ("text", "image")


def done(fusion: str, seed: int, validation: float, correct: str, inputs: tuple[str, ...] = INPUTS, **more) -> Result:
    accuracy = correct.count("1") / len(correct)
    keys = ["+".join(one) for size in range(1, len(inputs) + 1) for one in itertools.combinations(inputs, size)]
    given = {
        "class_path": f"fusion_pl.fusion.{fusion}",
        "version": "0.1.0",
        "config": "abc",
        "command": f"fusion-pl fit --config runs/{fusion}-{'+'.join(inputs)}-{seed}/config.yaml",
        "test": {"test/accuracy": accuracy, "test/f1": accuracy / 2},
        "ids": tuple(f"s{place}" for place in range(len(correct))),
        "tested": f"{len(correct)} test samples",
        "validation_samples": 50,
        "validated": "50 validation samples",
        "subset_samples": {key: float(len(correct)) for key in keys},
        "subsets": {key: accuracy - 0.1 * (len(inputs) - 1 - key.count("+")) for key in keys},
        "seconds": 10.0 + seed,
        "parameters": 1000 * len(fusion),
        "head_parameters": 100,
        "flops": 2_500_000,
        "latency_ms": 3.0 * len(fusion),
        "batch_size": 8,
        "memory_mb": 512.0,
    } | more
    return Result(
        fusion=fusion, inputs=inputs, seed=seed, status="done", validation=validation, correct=correct, **given
    )


def failed(fusion: str, seed: int, reason: str) -> Result:
    return Result(fusion, f"fusion_pl.fusion.{fusion}", INPUTS, seed, "failed", reason, version="0.1.0")
