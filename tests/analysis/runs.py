"""Results of runs that were not executed."""

from __future__ import annotations

import itertools

from fusion_pl.analysis.result import RunResult

INPUTS = ("text", "image")


def done(
    fusion: str, seed: int, validation: float, correct: str, inputs: tuple[str, ...] = INPUTS, **fields
) -> RunResult:
    accuracy = correct.count("1") / len(correct)
    keys = ["+".join(one) for size in range(1, len(inputs) + 1) for one in itertools.combinations(inputs, size)]
    defaults = {
        "class_path": f"fusion_pl.fusion.{fusion}",
        "version": "0.1.0",
        "key": "abc",
        "command": f"fusion-pl fit --config runs/{fusion}-{'+'.join(inputs)}-{seed}/config.yaml",
        "test": {"test/accuracy": accuracy, "test/f1": accuracy / 2},
        "ids": tuple(f"s{index}" for index in range(len(correct))),
        "test_hash": f"{len(correct)} test samples",
        "validation_metric": validation,
        "validation_samples": 50,
        "validation_hash": "50 validation samples",
        "subset_samples": {key: len(correct) for key in keys},
        "subsets": {key: accuracy - 0.1 * (len(inputs) - 1 - key.count("+")) for key in keys},
        "seconds": 10.0 + seed,
        "parameters": 1000 * len(fusion),
        "head_parameters": 100,
        "flops": 2_500_000,
        "latency_ms": 3.0 * len(fusion),
        "batch_size": 8,
        "memory_mb": 512.0,
    }
    return RunResult(
        inputs=inputs, seed=seed, status="done", validation_score=validation, correct=correct, **(defaults | fields)
    )


def failed(fusion: str, seed: int, reason: str) -> RunResult:
    return RunResult(f"fusion_pl.fusion.{fusion}", INPUTS, seed, "failed", reason, version="0.1.0")
