"""A few damaged requests; `python -m benchmarks.fuzz_serve` sends more. The OpenAPI description is true for others."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

from benchmarks.fuzz_serve import LIMITS as FUZZ_LIMITS
from benchmarks.fuzz_serve import Answer, find_fault, make_case, run_cases, write_checkpoint
from fusion_pl.serve.service import ServeOptions, Service


def test_damaged_requests_have_documented_answers(tmp_path):
    write_checkpoint(tmp_path / "best.ckpt")
    service = Service(ServeOptions(str(tmp_path / "best.ckpt"), "cpu", limits=FUZZ_LIMITS))
    counts, faults = asyncio.run(run_cases(service, range(120), 0))
    assert faults == []
    statuses = Counter()
    for (_, status), count in counts.items():
        statuses[status] += count
    assert {200, 413, 415, 422} <= statuses.keys()
    assert statuses[200] > 25
    assert statuses[422] > 25


def test_cases_are_a_function_of_seed_and_number():
    assert make_case(0, 7) == make_case(0, 7) != make_case(1, 7)


def test_faults_are_detected():
    fields = ["id", "label", "error"]
    assert find_fault(Answer(200, b"<html>"), fields) == "the answer is not JSON"
    assert find_fault(Answer(500, b'{"error": "a"}'), fields) == "500 a"
    assert find_fault(Answer(422, b'{"error": "a\\nb"}'), fields) is not None
    good = {"id": "0", "label": "a", "error": None}
    assert find_fault(Answer(200, json.dumps(good).encode()), fields) is None
    assert find_fault(Answer(200, json.dumps(good | {"label": None}).encode()), fields) is not None
