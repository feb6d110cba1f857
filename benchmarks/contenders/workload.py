"""What every contender is asked: the same artifact, the same observations, and the actions that are right."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from carla_policy.card import ModelCard
from carla_policy.golden import FloatArray
from carla_policy.loading import load_policy
from carla_policy.service import PolicyService, Request
from carla_policy_tools.archive import unpack
from carla_policy_tools.build import build
from carla_policy_tools.client import request_body
from carla_policy_tools.paths import archive_name

ROWS = 64
JSON_TYPE = {"content-type": "application/json"}


@dataclass(frozen=True)
class Workload:
    """An artifact with its archive in `store`, `observations` `[rows, columns]`, and what the policy does with them."""

    artifact: Path
    store: Path
    card: ModelCard
    observations: FloatArray
    controls: FloatArray
    """`[rows, 3]`: throttle, brake, steer, of the packaged policy itself, in this process."""
    bodies: Sequence[str]
    """A request for each observation."""
    answer: bytes
    """What our own server answers to the first of them."""

    @property
    def version(self) -> str:
        return self.card.version


def prepare_workload(artifact: Path, store: Path, rows: int = ROWS) -> Workload:
    """Build and verify the archive of `artifact` in `store`; `ValueError` where not all contenders could serve it."""
    build(artifact, store)
    version = artifact.name
    with tempfile.TemporaryDirectory(prefix="bench-unpacked-") as scratch:
        unpack(store / archive_name(version), Path(scratch))
        loaded = load_policy(Path(scratch))
    card = loaded.policy.card
    layout = getattr(card.action, "layout", None)
    if card.head.type not in ("gaussian", "deterministic") or layout != ("acceleration", "steer") or card.recurrent:
        raise ValueError(
            f"{version}: the other contenders serve policies of [acceleration, steer] with a gaussian or deterministic "
            f"head and no state only; got {card.head.type} and {layout}; choose another --artifact"
        )
    observations = np.resize(loaded.golden.observations, (rows, card.observation.columns))
    bodies = [json.dumps(request_body(row[None])) for row in observations]
    service = PolicyService(loaded)
    request = Request(bodies[0].encode(), JSON_TYPE)
    return Workload(
        artifact=artifact.resolve(),
        store=store,
        card=card,
        observations=observations,
        controls=loaded.policy.act(observations).controls,
        bodies=bodies,
        answer=service.encode(service.infer(service.parse([request])))[0].body,
    )


def rows_body(observations: FloatArray) -> bytes:
    """One JSON request for all of `observations`."""
    content: dict[str, Any] = request_body(observations)
    return json.dumps(content).encode()
