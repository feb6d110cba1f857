"""Copy files of a model version: their list, their names and their sizes are what somebody else says.

Nothing is loaded here. A listing is bounded and its names must lie where they say; what comes is bounded by what was
listed, whatever store it comes from.
"""

from __future__ import annotations

import re
import resource
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from carla_policy.digests import file_digest, sha256
from carla_policy_tools.mlflow_adapter.connection import Connection, MlflowError

MAX_FILES = 200
MAX_BYTES = 1 << 30
MAX_DEPTH = 6
ELSEWHERE = ("s3", "gs", "wasbs", "abfss")
"""Stores that a server may point to: they are asked with the user's own credentials."""
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,200}")
_LEAST_LIMIT = 1 << 20
"""Of a file that is being written: a log that stderr goes to must not meet the limit."""


@dataclass(frozen=True)
class RemoteFile:
    path: str
    """Relative, with forward slashes."""
    size: int

    @property
    def directory(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


class ModelFiles:
    """The files of one model version."""

    def __init__(self, connection: Connection, location: str) -> None:
        self.location = _resolved(connection, location)
        self._repository = connection.repository(self.location)

    def listed(self) -> list[RemoteFile]:
        """All files; `MlflowError` for too many, too large, or names that lead elsewhere."""
        found: list[RemoteFile] = []
        self._walk("", 0, found)
        total = sum(file.size for file in found)
        if total > MAX_BYTES:
            raise MlflowError(f"{self.location}: {total} bytes; expected at most {MAX_BYTES >> 20} MiB")
        return found

    def fetch(self, files: Sequence[RemoteFile], directory: Path, *, below: str = "") -> None:
        """Copy `files` into `directory`, without the part `below` of their paths; never more bytes than were listed."""
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=directory) as incoming:
            for file in files:
                got = self._download(file, incoming)
                if got.is_symlink() or not got.is_file() or got.stat().st_size != file.size:
                    raise MlflowError(
                        f"{self.location}: {file.path}: expected a file of {file.size} bytes, as was listed"
                    )
                target = directory / file.path.removeprefix(f"{below}/" if below else "")
                target.parent.mkdir(parents=True, exist_ok=True)
                got.rename(target)

    def _download(self, file: RemoteFile, incoming: str) -> Path:
        try:
            with _largest_file(max(file.size, _LEAST_LIMIT)):
                return Path(self._repository.download_artifacts(file.path, incoming))
        except OSError as error:
            raise MlflowError(f"{self.location}: {file.path}: cannot be copied: {error.strerror or error}") from None

    def _walk(self, directory: str, depth: int, found: list[RemoteFile]) -> None:
        if depth > MAX_DEPTH:
            raise MlflowError(f"{self.location}: directories more than {MAX_DEPTH} deep; no model has that")
        for entry in self._repository.list_artifacts(directory or None):
            parent, _, name = str(entry.path).rpartition("/")
            if parent != directory or not _NAME.fullmatch(name) or name in (".", ".."):
                raise MlflowError(f"{self.location}: lists {entry.path!r:.120} in {directory or '.'!r}; refused")
            if entry.is_dir:
                self._walk(entry.path, depth + 1, found)
                continue
            if not isinstance(entry.file_size, int) or entry.file_size < 0:
                raise MlflowError(f"{self.location}: does not say how large {entry.path} is; refused")
            found.append(RemoteFile(entry.path, entry.file_size))
            if len(found) > MAX_FILES:
                raise MlflowError(f"{self.location}: more than {MAX_FILES} files; no model has that many")


def tree_digest(directory: Path, files: Sequence[RemoteFile]) -> str:
    """Digest of the names and contents of `files` below `directory`."""
    lines = sorted(f"{file_digest(directory / file.path)} {file.path}\n" for file in files)
    return sha256("".join(lines).encode())


def _resolved(connection: Connection, location: str) -> str:
    """Where the files are; `MlflowError` where a server points to files of this machine, or to strangers."""
    if location.startswith("models:/"):
        model: Any = connection.client.get_logged_model(location.removeprefix("models:/").strip("/"))
        location = str(model.artifact_location)
    parts = urlsplit(location)
    own = parts.scheme == "mlflow-artifacts" and parts.netloc in ("", urlsplit(connection.shown).netloc)
    local = parts.scheme in ("", "file") and not connection.is_remote
    if own or local or parts.scheme in ELSEWHERE:
        return location
    raise MlflowError(
        f"the files of this version are at {location!r:.200}; of a server, expected mlflow-artifacts:/ (start it "
        f"without --no-serve-artifacts) or one of {', '.join(ELSEWHERE)}"
    )


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Whatever is written meanwhile ends at `size` bytes: stores stream until the other side stops."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    bound = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
