"""Build and verify archives; an archive that was not verified in a process of its own is not left behind."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from carla_policy.digests import DIGESTS_FILE
from carla_policy.errors import ArtifactError
from carla_policy.files import read_file
from carla_policy.loading import load_card_golden
from carla_policy_tools import isolated_replay
from carla_policy_tools.archive import MAX_BYTES, pack
from carla_policy_tools.artifact import load_training_preprocessor, verify_artifact
from carla_policy_tools.compilation import NotCompilable, compile_preprocessor
from carla_policy_tools.keys import PublicKey, SigningKey
from carla_policy_tools.paths import archive_name, naming
from carla_policy_tools.processes import PASSPHRASE_VARIABLE
from carla_policy_tools.signing import add_signature, check_archive, signature_path

REPLAY_TIMEOUT_S = 300
REPLAY_NICENESS = 10
"""A verification must not be felt by a server on the same machine."""


@dataclass(frozen=True)
class Verification:
    """What a verified archive is, and how closely it reproduces its training outputs, stage by stage."""

    archive: Path
    version: str
    digest: str
    preprocessor: str
    vectors: int
    gate: str
    """What "reproduces" means for this version: the tile it runs in and the tolerance of its card."""
    stages: tuple[dict[str, Any], ...]
    git_sha: str
    atol: float
    probes: tuple[dict[str, Any], ...]
    """Requests of golden observations and the actions that the archive answers to them, for a server to repeat."""
    signed_by: tuple[str, ...] = ()
    """Ids of the keys that have signed it, of those that were asked for."""

    def to_json(self) -> dict[str, Any]:
        shown = {name: value for name, value in vars(self).items() if name not in ("probes", "atol")}
        return {**shown, "archive": str(self.archive)}


@dataclass(frozen=True)
class Build:
    verification: Verification
    unchanged: bool
    """The same archive was there already."""
    not_compiled: str | None
    """Why the preprocessor runs as scikit-learn, where it does."""


def build(artifact: Path, store: Path, signing_key: SigningKey | None = None) -> Build:
    """Pack `artifact` into `store`, verify the archive and sign it; on any failure the store is as it was before.

    Raises `ArtifactError` where the artifact, or the archive made of it, must not be served, and where the store has
    other content under the same version.
    """
    card = verify_artifact(artifact)
    training = load_training_preprocessor(artifact, card)
    golden = load_card_golden(artifact, card)
    compiled, not_compiled = None, None
    try:
        compiled = compile_preprocessor(training, golden.observations)
    except NotCompilable as reason:
        not_compiled = str(reason)
    data = pack(artifact, card, compiled)
    target = store / archive_name(card.version)
    unchanged = _holds(target, data)
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=store) as scratch:
        candidate = Path(scratch, target.name)
        candidate.write_bytes(data)
        verification = verify(candidate)
        signature = signature_path(candidate)
        if signing_key:
            signed = add_signature(signature_path(target), _manifest(data), card.version, signing_key)
            signature.write_bytes(signed.dump())
        if not unchanged:
            _publish(candidate, target)
        if signing_key:
            signature.replace(signature_path(target))
    signed_by = (signing_key.key_id,) if signing_key else ()
    return Build(replace(verification, archive=target, signed_by=signed_by), unchanged, not_compiled)


def verify(
    archive: Path,
    *,
    trusted_keys: Sequence[PublicKey] = (),
    original: Path | None = None,
    timeout_s: float = REPLAY_TIMEOUT_S,
) -> Verification:
    """Check `archive` alone: what `check_archive` does, and only then a replay in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="carla-policy-verify-") as scratch:
        directory = Path(scratch).resolve()
        checked = check_archive(archive, directory, trusted_keys, original)
        result = _replay(directory, timeout_s)
    return Verification(
        archive=archive,
        version=result["version"],
        digest=checked.digest,
        preprocessor=result["preprocessor"],
        vectors=result["vectors"],
        gate=result["gate"],
        stages=tuple(result["stages"]),
        git_sha=result["git_sha"],
        atol=result["atol"],
        probes=tuple(result["probes"]),
        signed_by=checked.signed_by,
    )


def _manifest(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        return packed.read(DIGESTS_FILE)


def _publish(candidate: Path, target: Path) -> None:
    """Put a verified archive in its place in one step, unless another build has put a different one there."""
    try:
        target.hardlink_to(candidate)
    except FileExistsError:
        _holds(target, candidate.read_bytes())


def _holds(target: Path, data: bytes) -> bool:
    """Whether the store has the archive already; `ArtifactError` if it has another one under this version."""
    if not (target.exists() or target.is_symlink()):
        return False
    with naming(target):
        if read_file(target, MAX_BYTES) == data:
            return True
    raise ArtifactError(
        f"{target}: this version was built before with other content (artifact or serving code), and a version never "
        "changes; give the artifact a new version, or delete the archive if it was never deployed "
        "(`make rebuild` builds all again)"
    )


def _replay(directory: Path, timeout_s: float) -> dict[str, Any]:
    command = [sys.executable, "-I", "-B", "-W", "ignore", str(isolated_replay.__file__), str(directory)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != PASSPHRASE_VARIABLE},
        start_new_session=True,
        preexec_fn=lambda: os.nice(REPLAY_NICENESS),
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise ArtifactError(f"replay: did not end within {timeout_s:g} s; does the handler hang?") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what the archive's code may have started
    lines = output.splitlines()
    if process.returncode or not lines:
        reason = (errors.strip().splitlines() or ["no output"])[-1]
        raise ArtifactError(f"replay: the process ended with status {process.returncode}: {reason}")
    result: dict[str, Any] = json.loads(lines[-1])
    if "error" in result:
        raise ArtifactError(result["error"])
    return result
