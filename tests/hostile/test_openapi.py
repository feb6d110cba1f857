"""`openapi.json` is a valid document, and what schemathesis makes of it is answered as the document says.

Its check `unsupported_method` is left out: TorchServe hands every method to the handler, which does not see which one
it was, so PUT with a valid body is answered like POST, and not with a 405. So is `positive_data_acceptance`:
JSON Schema cannot say what an array file is, nor that a seed of 1.0 is no integer.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance, unsupported_method

from tests.hostile.http_client import Bystander, Target
from tests.hostile.subject import Subject

SEED = 20261121
EXAMPLES = 60
EXCLUDED = [unsupported_method, positive_data_acceptance]


@pytest.fixture(scope="module")
def document(target: Target) -> dict[str, Any]:
    reply = target.ask(b"", {}, method="GET", path=f"{target.path}/openapi.json")
    assert reply.status == 200, reply
    content: dict[str, Any] = json.loads(reply.content)
    return content


def test_document_is_valid(document: dict[str, Any], target: Target) -> None:
    OpenAPIV31SpecValidator(document).validate()
    assert target.path in document["paths"]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_operation_answers_as_documented(
    mode: GenerationMode, document: dict[str, Any], target: Target, served: Subject
) -> None:
    workers = target.workers()
    schema = schemathesis.openapi.from_dict(document)
    with Bystander(target, served.good()):
        for operation in (found.ok() for found in schema.get_all_operations()):
            if mode is GenerationMode.NEGATIVE and operation.method == "get":
                continue  # has no parameter that could be wrong

            @seeded(SEED)
            @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(operation.as_strategy(generation_mode=mode))
            def check(case: schemathesis.Case) -> None:
                case.call_and_validate(base_url=target.server.base, excluded_checks=EXCLUDED)

            check()
    assert target.workers() == workers
