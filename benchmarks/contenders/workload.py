"""What every contender is asked: the same artifact, the same observations, and the actions that are right."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from carla_policy.batch import Request
from carla_policy.card import CARD_FILE, ModelCard
from carla_policy.golden import FloatArray
from carla_policy.loading import LoadedPolicy, load_policy
from carla_policy.service import PolicyService
from carla_policy_tools.archive import unpack
from carla_policy_tools.artifact import seal
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


def add_copies(workload: Workload, count: int) -> tuple[str, ...]:
    """Build so many copies of the workload's version into its store, under versions of their own; which these are."""
    major = workload.version.partition(".")[0]
    versions = tuple(f"{major}.900.{number}" for number in range(count))
    for version in versions:
        with tempfile.TemporaryDirectory(prefix="bench-copy-") as scratch:
            artifact = Path(shutil.copytree(workload.artifact, Path(scratch, version)))
            card = artifact / CARD_FILE
            card.write_text(card.read_text().replace(f"\nversion: {workload.version}\n", f"\nversion: {version}\n"))
            seal(artifact)
            build(artifact, workload.store)
    return versions


def load_workload(workload: Workload) -> LoadedPolicy:
    """The packaged policy itself, in this process."""
    with tempfile.TemporaryDirectory(prefix="bench-unpacked-") as scratch:
        unpack(workload.store / archive_name(workload.version), Path(scratch))
        return load_policy(Path(scratch))
