"""A packaged version in this process: from its archive, or from the directory of its artifact."""

from __future__ import annotations

import tempfile
from pathlib import Path

from carla_policy.loading import load_policy
from carla_policy.policy import Policy
from carla_policy_tools.archive import unpack
from carla_policy_tools.artifact import load_artifact
from carla_policy_tools.paths import naming


def load_packaged(source: Path) -> Policy:
    """The policy in the archive or artifact directory `source`, verified and with its golden vectors replayed.

    Raises `ArtifactError`. None of the archive's own code runs: the handler's here does.
    """
    with naming(source):
        if source.is_dir():
            return load_artifact(source).policy
        with tempfile.TemporaryDirectory(prefix="carla-policy-drive-") as scratch:
            unpack(source, Path(scratch))
            return load_policy(Path(scratch)).policy
