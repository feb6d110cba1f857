"""What an archive tells TorchServe about itself: `MANIFEST.json` and `model-config.yaml`.

TorchServe obeys both before a line of the archive's own code runs: which file is the handler, which interpreter runs
it, whether requirements are installed, how many workers start. So the manifest of a version has one spelling, and the
configuration has known keys only, with values that a machine can bear.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from typing_extensions import Self

from carla_policy.card import ModelCard
from carla_policy.errors import ArtifactError
from carla_policy.files import read_file
from carla_policy.strict_yaml import MAX_BYTES, parse_yaml
from carla_policy.worker_protocol import MAX_BUSY_POLL_US
from carla_policy_tools.paths import MODEL_NAME

MANIFEST_FILE = "MAR-INF/MANIFEST.json"
HANDLER_FILE = "policy_handler.py"
CONFIG_FILE = "model-config.yaml"
ARCHIVER_VERSION = "0.12.0"
"""Of the torch-model-archiver that lays out an archive. Those of another one would be other archives."""

Workers = Annotated[int, Field(ge=1, le=64)]
Seconds = Annotated[int, Field(ge=1, le=3600)]


class HandlerConfig(BaseModel):
    """What the handler itself takes from `model-config.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    busyPollUs: Annotated[int, Field(ge=0, le=MAX_BUSY_POLL_US)] = 0  # noqa: N815


class ServingConfig(BaseModel):
    """`model-config.yaml`, for a TorchServe that knows no profile. Names and defaults are TorchServe's."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    minWorkers: Workers = 1  # noqa: N815
    maxWorkers: Workers = 1  # noqa: N815
    batchSize: Annotated[int, Field(ge=1, le=8192)] = 1  # noqa: N815
    maxBatchDelay: Annotated[int, Field(ge=1, le=10_000)] = 100  # noqa: N815
    """In milliseconds."""
    responseTimeout: Seconds = 120  # noqa: N815
    startupTimeout: Seconds = 120  # noqa: N815
    maxRetryTimeoutInSec: Seconds = 300  # noqa: N815
    jobQueueSize: Annotated[int, Field(ge=1, le=100_000)] = 100  # noqa: N815
    handler: HandlerConfig = HandlerConfig()

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.maxWorkers < self.minWorkers:
            raise ValueError(f"maxWorkers: expected at least minWorkers, got {self.maxWorkers} below {self.minWorkers}")
        return self


def manifest_text(card: ModelCard) -> str:
    """The one spelling of a version's manifest: torch-model-archiver's, with the date of the card."""
    manifest = {
        "archiverVersion": ARCHIVER_VERSION,
        "createdOn": card.created.strftime("%d/%m/%Y %H:%M:%S"),
        "model": {
            "configFile": CONFIG_FILE,
            "handler": HANDLER_FILE,
            "modelName": MODEL_NAME,
            "modelVersion": card.version,
            "serializedFile": card.model_file,
        },
        "runtime": "python",
    }
    return json.dumps(manifest, indent=2, sort_keys=True) + "\n"


def check_instructions(directory: Path, card: ModelCard) -> None:
    """`ArtifactError` unless an unpacked archive has the manifest of its card, and a configuration that is bounded."""
    expected, found = manifest_text(card).encode(), read_file(directory / MANIFEST_FILE, MAX_BYTES)
    if found != expected:
        known = expected.splitlines()
        strange = [line.strip().decode(errors="replace") for line in found.splitlines() if line not in known]
        raise ArtifactError(
            f"{MANIFEST_FILE}: expected the manifest of {MODEL_NAME} {card.version} as a build writes it, got "
            f"{strange or 'its lines in another order or number'!r:.200}"
        )
    try:
        ServingConfig.model_validate(parse_yaml(read_file(directory / CONFIG_FILE, MAX_BYTES), CONFIG_FILE))
    except ValidationError as error:
        raise ArtifactError(f"{CONFIG_FILE}: {'; '.join(map(_finding, error.errors()[:5]))}") from None


def _finding(error: ErrorDetails) -> str:
    where = f"{'.'.join(map(str, error['loc']))!s:.80}: " if error["loc"] else ""
    return f"{where}{error['msg'].removeprefix('Value error, ')}, got {error['input']!r:.80}"
