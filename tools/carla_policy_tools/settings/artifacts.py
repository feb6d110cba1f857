"""`artifact_dir`: what lies in it and has no archive yet is built before a server starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from carla_policy.errors import ArtifactError
from carla_policy_tools.paths import archive_name, sorted_versions
from carla_policy_tools.processes import END_WITH_PARENT

_COMMAND = (sys.executable, "-c", "from carla_policy_tools.cli import main; main()")


def artifacts_in(directory: Path, source: str) -> list[Path]:
    """The artifacts in `directory`, oldest version first; `ValueError` names `source` if it is none."""
    if not directory.is_dir():
        raise ValueError(f"{source}: {directory}: expected a directory of artifacts, each named like its version")
    return [directory / name for name in sorted_versions(path.name for path in directory.iterdir())]


def build_missing(directory: Path, store: Path, source: str, say: Callable[[str], None]) -> None:
    """Build what the store has no archive of, as `carla-policy build` does; `ArtifactError` with its words if it fails.

    An archive that is there stays, whatever has become of its artifact: a version has one content. In a process of its
    own, since building imports what serving does not need.
    """
    missing = [path for path in artifacts_in(directory, source) if not (store / archive_name(path.name)).exists()]
    for artifact in missing:
        say(f"building {artifact}")
        command = [*_COMMAND, "build", str(artifact), "--store", str(store), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=END_WITH_PARENT)
        if done.returncode:
            raise ArtifactError(done.stderr.strip().rpartition("error: ")[2] or f"{artifact}: cannot be built")
