"""Requests that are generated from the OpenAPI description have the answers that it documents."""

from __future__ import annotations

import threading

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings

from fusion_pl.serve.app import create_app
from fusion_pl.serve.processes import listen
from fusion_pl.serve.supervisor import server_configuration


@pytest.fixture(scope="module")
def address(service):
    server = uvicorn.Server(server_configuration(create_app(service)))
    with listen("127.0.0.1", 0) as bound:
        bound.listen()
        thread = threading.Thread(target=server.run, args=[[bound]])
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def test_every_request_of_the_schema_has_a_documented_answer(address):
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    statuses = set()

    @given(case=schema["/predict"]["POST"].as_strategy())
    @settings(
        max_examples=25,
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
