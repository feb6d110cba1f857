"""Archives to serve in drills: the shipped versions, copies of them under other versions, and changed ones."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import Questions
from carla_policy.card import CARD_FILE
from carla_policy.digests import DIGESTS_FILE, directory_digests, dump_digests
from carla_policy.loading import load_policy
from carla_policy_tools.archive import _zip, unpack
from carla_policy_tools.artifact import seal
from carla_policy_tools.build import build
from carla_policy_tools.client import request_body
from carla_policy_tools.paths import ARTIFACTS, archive_name

SOURCES = {"v0.1.0": "v0.1.0", "v0.2.0": "v0.2.0", "v0.3.0": "v0.3.0", "v0.4.0": "v0.1.0"}
"""The versions of a drill, and the shipped artifact that each is made of."""
FIRST, SECOND = "v0.1.0", "v0.2.0"
"""Two checkpoints of one training: they give every observation another action."""
ROWS = 64


@dataclass(frozen=True)
class Archives:
    """Built and verified archives in a directory, which drills copy what they need from, and questions to all."""

    directory: Path
    questions: Questions

    def copy(self, versions: Iterable[str], store: Path) -> None:
        """Put the archives of `versions` into `store`."""
        store.mkdir(parents=True, exist_ok=True)
        for version in versions:
            shutil.copyfile(self.directory / archive_name(version), store / archive_name(version))


def build_archives(directory: Path, versions: Sequence[str] = tuple(SOURCES)) -> Archives:
    """Build those of `SOURCES` that are named into `directory`, and verify them."""
    with tempfile.TemporaryDirectory(prefix="carla-policy-drill-") as scratch:
        for version in versions:
            build(copy_artifact(SOURCES[version], version, Path(scratch)), directory)
    return Archives(directory, ask_policies(directory, versions))


def copy_artifact(source: str, version: str, directory: Path) -> Path:
    """A copy of the shipped artifact `source` below `directory`, under the name `version`."""
    artifact = Path(shutil.copytree(ARTIFACTS / source, directory / version))
    if version != source:
        card = artifact / CARD_FILE
        card.write_text(card.read_text().replace(f"\nversion: {source}\n", f"\nversion: {version}\n"))
        seal(artifact)
    return artifact


def repack(directory: Path, archive: Path, *, update_digests: bool = True) -> Path:
    """Zip `directory` as a build does, with or without a list of digests that fits."""
    if update_digests:
        (directory / DIGESTS_FILE).write_text(dump_digests(directory_digests(directory)))
    archive.write_bytes(_zip(directory))
    return archive


def ask_policies(store: Path, versions: Sequence[str], rows: int = ROWS) -> Questions:
    """The first golden observations of the first of `versions`, and what each version does with them.

    Asks the packaged policies themselves, in this process: golden vectors may differ in the last bits on another
    processor, and a safety envelope changes actions.
    """
    bodies: list[str] = []
    expected = {}
    for version in versions:
        with tempfile.TemporaryDirectory(prefix="carla-policy-drill-") as scratch:
            unpack(store / archive_name(version), Path(scratch))
            loaded = load_policy(Path(scratch))
        if not bodies:
            observations = loaded.golden.observations[:rows]
            bodies = [json.dumps(request_body(row[None])) for row in observations]
        controls = [loaded.policy.act(row[None]).controls.tolist()[0] for row in observations]
        expected[version] = [dict(zip(("throttle", "brake", "steer"), row, strict=True)) for row in controls]
    return Questions(bodies, expected)
