"""The registry's file: read as a whole, changed under a lock, replaced in one step.

Beside `registry.json` lie `registry.json.lock` and the directory `registry.json.pending`, which holds the intents of
changes that are under way (see `intents`). Whoever is killed, at whatever moment, leaves the old file or the new one.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from carla_policy.errors import ArtifactError
from carla_policy.files import open_file
from carla_policy_tools.lifecycle.records import Registry

REGISTRY_FILE = "registry.json"
MAX_BYTES = 4 << 20
"""Of a registry: some 10,000 changes."""
LOCK_TIMEOUT_S = 30.0
POLL_S = 0.01


class RegistryError(RuntimeError):
    """A change of versions that cannot be made; the message says why, and what to do."""


class RegistryFile:
    """The registry of one deployment: `<store>/registry.json` unless another file is named."""

    def __init__(self, path: Path, store: Path) -> None:
        self.path = path
        self.store = store
        self._read: tuple[tuple[int, int, int], Registry] | None = None

    @classmethod
    def of(cls, store: Path, path: Path | None = None) -> RegistryFile:
        return cls(path or store / REGISTRY_FILE, store)

    @property
    def intents_directory(self) -> Path:
        return self.path.with_name(f"{self.path.name}.pending")

    @property
    def server_file(self) -> Path:
        """Where the server that serves this registry says how to reach it."""
        return self.path.with_name(f"{self.path.name}.server")

    def exists(self) -> bool:
        return self.path.exists()

    def read(self) -> Registry:
        """The registry as it stands, empty where there is no file; `ArtifactError` for a file that is none."""
        try:
            with open_file(self.path) as file:
                stat = os.fstat(file.fileno())
                state = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
                if self._read and self._read[0] == state:
                    return self._read[1]
                data = file.read(MAX_BYTES + 1)
            text = data.decode()
        except FileNotFoundError:
            return Registry()
        except OSError as error:
            raise ArtifactError(f"{self.path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{self.path}: cannot be read: {error}") from None
        if len(data) > MAX_BYTES:
            raise ArtifactError(
                f"{self.path}: larger than {MAX_BYTES >> 20} MiB, which no registry is; put a copy back"
            )
        try:
            registry = Registry.model_validate_json(text, strict=True)
            if type(json.loads(text, object_pairs_hook=_unique).get("format")) is not int:
                raise ValueError("format: expected 1")
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)[:5]
            raise self._refused(
                "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in found)
            ) from None
        except ValueError as error:
            raise self._refused(str(error)) from None
        self._read = (state, registry)
        return registry

    def _refused(self, findings: str) -> ArtifactError:
        return ArtifactError(
            f"{self.path}: not a registry ({findings:.1000}); put a copy back, or change versions by the commands only"
        )

    def write(self, registry: Registry) -> None:
        """Replace the file in one step that a crash cannot split. Hold the lock."""
        text = _dump(registry)
        if len(text) > MAX_BYTES:
            raise RegistryError(f"{self.path}: its history has grown to {MAX_BYTES >> 20} MiB; start another registry")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.new")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextmanager
    def locked(self, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[Registry]:
        """The registry, while nobody else may change it; `RegistryError` if somebody holds on to it too long."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f"{self.path.name}.lock").open("w") as lock:
            deadline = time.monotonic() + timeout_s
            while not try_lock(lock.fileno()):
                if time.monotonic() > deadline:
                    raise RegistryError(f"{self.path}: another command has held the lock for {timeout_s:g} s")
                time.sleep(POLL_S)
            yield self.read()


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file for as long as it stays open, unless somebody else has; `shared` is to look, not to change."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object whose keys are all different; of equal keys, one reader takes the first, another the last."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError(f"{Counter(key for key, _ in pairs).most_common(1)[0][0]}: stands twice in one object")
    return content


def _dump(registry: Registry) -> str:
    """JSON for people too: one line for each version and each event."""
    content = registry.model_dump(mode="json", exclude_none=True)
    versions = ",\n".join(f"  {json.dumps(name)}: {json.dumps(record)}" for name, record in content["versions"].items())
    history = ",\n".join(f"  {json.dumps(event)}" for event in content["history"])
    head = {key: value for key, value in content.items() if key not in ("versions", "history")}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    lines.append(f' "versions": {{\n{versions}\n }}')
    lines.append(f' "history": [\n{history}\n ]')
    return "{\n" + ",\n".join(lines) + "\n}\n"
