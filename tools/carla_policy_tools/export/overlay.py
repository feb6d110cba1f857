"""The user's own keys of a model card, checked before anything else is done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from carla_policy.card import ModelCard
from carla_policy.specs import Controls, InferenceSpec, ParitySpec, ProvenanceSpec, SafetySpec
from carla_policy_tools.export.errors import ExportError

SECTIONS: dict[str, Any] = {
    "safety": SafetySpec,
    "parity": ParitySpec,
    "inference": InferenceSpec,
    "provenance": ProvenanceSpec,
}
DEFAULTS: dict[str, dict[str, Any]] = {"safety": {"fallback": {"throttle": 0.0, "brake": 1.0, "steer": 0.0}}}
MAPPINGS = (
    "observation",
    "preprocessor",
    "head",
    "action",
    "safety",
    "ood",
    "recurrent",
    "parity",
    "inference",
    "provenance",
)


def check_overlay(path: Path, overlay: Mapping[str, Any]) -> None:
    """`ExportError` naming the key, where `overlay` from the file `path` could not become part of a card."""
    for key, value in overlay.items():
        if key not in ModelCard.model_fields:
            raise ExportError(f"--card {path}: {key}: not a key of a model card")
        if key in MAPPINGS and not isinstance(value, Mapping):
            raise ExportError(f"--card {path}: {key}: expected keys and values, got {value!r:.60}")
    for key, spec in SECTIONS.items():
        if key in overlay:
            check_section(f"--card {path}: {key}", spec, {**DEFAULTS.get(key, {}), **overlay[key]})
    fields = dict(overlay.get("observation", {})).get("fields", [])
    if not isinstance(fields, list) or not all(isinstance(field, Mapping) for field in fields):
        raise ExportError(f"--card {path}: observation.fields: expected a list of keys and values, got {fields!r:.60}")


def check_table(path: Path, table: Any) -> None:
    """`ExportError` naming the row, where the table of actions in `path` is none."""
    for number, row in enumerate(table):
        check_section(f"--table {path}: row {number}", Controls, row)


def check_section(name: str, spec: Any, content: Any) -> Any:
    """`content` as `spec` reads it from a card; an `ExportError` begins with `name` and the key."""
    try:
        return TypeAdapter(spec).validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join((name, *map(str, first["loc"])))
        raise ExportError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
