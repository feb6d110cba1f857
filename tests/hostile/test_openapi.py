"""`openapi.json` is a valid document, and what schemathesis makes of it is answered as the document says.

Its check `unsupported_method` is left out: TorchServe hands every method to the handler, which does not see which one
it was, so PUT with a valid body is answered like POST, and not with a 405. So is `positive_data_acceptance`:
JSON Schema cannot say what an array file is, nor that a seed of 1.0 is no integer.

Nor can it say that numbers are rounded to float32 before they are held against the bounds: a steering of 1.00000001
violates the document, and is answered. A wrong request that rounding makes right is not sent. Which examples
hypothesis draws from one seed depends on the modules that other tests have imported, so any of them must do.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import schemathesis
import schemathesis.specs.openapi.schemas  # imported within a test, deep in the stack, it has upset Python 3.11
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import seed as seeded
from jsonschema import Draft202012Validator
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


def rounded(value: Any) -> Any:
    """`value` with each number with a fraction as a server reads it: the nearest float32."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            return float(np.float32(value))
    return value


@pytest.fixture(scope="module")
def request_schema(document: dict[str, Any]) -> Draft202012Validator:
    """Of a request's JSON."""
    reference = {"$ref": "#/components/schemas/PredictRequest"}
    return Draft202012Validator({**reference, "components": document["components"]})


def test_document_is_valid(document: dict[str, Any], target: Target) -> None:
    OpenAPIV31SpecValidator(document).validate()
    assert target.path in document["paths"]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_operation_answers_as_documented(
    mode: GenerationMode,
    document: dict[str, Any],
    request_schema: Draft202012Validator,
    target: Target,
    served: Subject,
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
                if mode is GenerationMode.NEGATIVE and isinstance(case.body, dict):
                    assume(not request_schema.is_valid(rounded(case.body)))
                case.call_and_validate(base_url=target.server.base, excluded_checks=EXCLUDED)

            check()
    assert target.workers() == workers
