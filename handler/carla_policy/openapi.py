"""`openapi.json` of one version: its requests, answers and errors, with the layout and limits of its card."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter

from carla_policy.card import ModelCard
from carla_policy.episodes import RESOURCE as EPISODES
from carla_policy.errors import error_types
from carla_policy.media import JSON_MEDIA_TYPE, NPY_MEDIA_TYPE
from carla_policy.messages import EpisodeReport, ErrorAnswer, PredictAnswer, PredictRequest

RESOURCES = {
    "healthz": "Replays a golden vector.",
    "metadata": "The card, and what the worker made of it.",
    "warmup": "Acts on golden observations.",
    "openapi.json": "This document.",
}
"""What answers beside predictions, and what it is for."""
ARRAY = {"type": "string", "format": "binary"}


def document(card: ModelCard) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the version with this card."""
    base = f"/predictions/{card.model_name}/{card.version}"
    paths: dict[str, Any] = {base: {"post": _prediction(card)}}
    for name, summary in RESOURCES.items():
        answer = {"description": "OK", "content": {JSON_MEDIA_TYPE: {"schema": {"type": "object"}}}}
        responses = {"200": answer, **_refusals((500, 503))}
        paths[f"{base}/{name}"] = {"get": {"operationId": _operation(name), "summary": summary, "responses": responses}}
    paths[f"{base}/{EPISODES}"] = {"post": _report()}
    return {
        "openapi": "3.1.0",
        "info": {"title": card.model_name, "version": card.version, "description": card.description},
        "paths": paths,
        "components": {"schemas": _schemas(card)},
    }


def _operation(name: str) -> str:
    return name.removesuffix(".json")


def _prediction(card: ModelCard) -> dict[str, Any]:
    content: dict[str, Any] = {JSON_MEDIA_TYPE: {"schema": _ref("PredictRequest")}}
    answers: dict[str, Any] = {JSON_MEDIA_TYPE: {"schema": _ref("PredictAnswer")}}
    if not card.recurrent:
        content[NPY_MEDIA_TYPE], answers[NPY_MEDIA_TYPE] = {"schema": ARRAY}, {"schema": ARRAY}
    return {
        "operationId": "predict",
        "summary": "An action for each observation.",
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"description": "OK", "content": answers}, **_refusals(error_types())},
    }


def _report() -> dict[str, Any]:
    answer = {"description": "OK", "content": {JSON_MEDIA_TYPE: {"schema": {"type": "object"}}}}
    return {
        "operationId": EPISODES,
        "summary": "Counts an episode that a client has driven.",
        "requestBody": {"required": True, "content": {JSON_MEDIA_TYPE: {"schema": _ref("EpisodeReport")}}},
        "responses": {"200": answer, **_refusals((400, 415, 422, 500, 503))},
    }


def _refusals(statuses: Iterable[int]) -> dict[str, Any]:
    kinds = error_types()
    return {
        str(status): {
            "description": ", ".join(kind.type for kind in kinds[status]),
            "content": {JSON_MEDIA_TYPE: {"schema": _ref("ErrorAnswer")}},
        }
        for status in statuses
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _schemas(card: ModelCard) -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    for message in (PredictRequest, PredictAnswer, EpisodeReport, ErrorAnswer):
        schema = TypeAdapter(message).json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[message.__name__] = schema
    observations = schemas["PredictRequest"]["properties"]["observations"]
    observations |= {"minItems": 1, "maxItems": card.inference.max_observations}
    speed, steering, *sensors = (
        {"type": "number", "minimum": field.low, "maximum": field.high, "description": f"{field.name}, {field.unit}"}
        for field in card.observation.fields
    )
    fixed = {"type": "array", "minItems": len(sensors), "maxItems": len(sensors)}
    vector = {**fixed, "prefixItems": sensors} if sensors else fixed
    schemas["Observation"]["properties"] = {"speed": speed, "steering": steering, "sensors": vector}
    schemas["ErrorAnswer"]["properties"]["type"]["enum"] = [
        kind.type for kinds in error_types().values() for kind in kinds
    ]
    if not card.recurrent:
        del schemas["PredictRequest"]["properties"]["state"]  # and this version would refuse one
    return schemas
