"""Requests that are generated from the OpenAPI description have the answers that it documents."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings


@pytest.mark.parametrize(("path", "cases"), [("/predict", 25), ("/explain", 10)])
def test_every_request_of_the_schema_has_a_documented_answer(path, cases, address):
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    statuses = set()

    @given(case=schema[path]["POST"].as_strategy())
    @settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )
    def check(case):
        statuses.add(case.call_and_validate().status_code)

    check()
    assert 200 in statuses
