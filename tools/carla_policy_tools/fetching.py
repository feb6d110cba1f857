"""Bring a registry and its archives from elsewhere into a store: what starts a container that has neither.

The registry that is declared says which bytes each version is. An archive is loaded beside its place, and comes there
in one step when its digest is the registry's, its own list of digests holds, and a trusted key has signed it where that
is asked for. Nothing of it runs; `serve` replays its golden vectors as it does with every archive.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol
from urllib.parse import urlsplit

from carla_policy.digests import file_digest
from carla_policy.errors import ArtifactError
from carla_policy.files import open_file
from carla_policy_tools.archive import MAX_BYTES
from carla_policy_tools.keys import PublicKey
from carla_policy_tools.lifecycle.endpoint import find_server
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.paths import archive_name, archived_versions, naming
from carla_policy_tools.processes import FETCH_TOKEN_VARIABLE
from carla_policy_tools.signing import MAX_FILE_BYTES, check_archive, signature_path

if TYPE_CHECKING:
    import requests

PATIENCE_S = 60.0
"""For a source that is not there yet, or breaks off."""
TIMEOUT_S = 10.0
"""Of a connection, and between two pieces of an answer."""
_PIECE = 1 << 20
_FIRST_PAUSE_S = 0.2


class SourceError(OSError):
    """A source that did not give what it was asked for; it may be worth another try."""


class MissingFile(ArtifactError):
    """A source that is there and does not have the file."""


@dataclass(frozen=True)
class Fetched:
    """A version whose archive is in the store now."""

    version: str
    digest: str
    unchanged: bool
    """It was there already."""
    signed_by: tuple[str, ...]


class Source(Protocol):
    """Where archives and their signatures lie under their own names."""

    def copy(self, name: str, target: BinaryIO, most: int) -> str:
        """Write the file `name` to `target`; its digest.

        `MissingFile` where there is none, `ArtifactError` for one of more than `most` bytes, `SourceError` for trouble
        on the way.
        """

    def versions(self) -> list[str]:
        """What there is; `ArtifactError` for a source that cannot be listed."""


class DirectorySource:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def copy(self, name: str, target: BinaryIO, most: int) -> str:
        try:
            with open_file(self._directory / name) as file:
                return _copy(iter(lambda: file.read(_PIECE), b""), target, name, most)
        except FileNotFoundError:
            raise MissingFile(f"{self._directory / name}: there is no such file") from None

    def versions(self) -> list[str]:
        return archived_versions(self._directory)


class HttpSource:
    """A web server, or what speaks like one: `GET <base>/<name>`, with CARLA_POLICY_FETCH_TOKEN as a bearer token."""

    def __init__(self, base: str) -> None:
        import requests

        self._base = base.rstrip("/")
        self._session = requests.Session()
        self._session.headers["Accept-Encoding"] = "identity"
        if token := os.environ.get(FETCH_TOKEN_VARIABLE):
            self._session.headers["Authorization"] = f"Bearer {token}"

    def copy(self, name: str, target: BinaryIO, most: int) -> str:
        import requests

        url = f"{self._base}/{name}"
        try:
            with self._session.get(url, stream=True, timeout=TIMEOUT_S) as answer:
                self._check(answer, url)
                return _copy(answer.iter_content(_PIECE), target, url, most)
        except requests.RequestException as error:
            raise SourceError(f"{url}: {error}") from None

    def versions(self) -> list[str]:
        raise ArtifactError(
            f"{self._base}: cannot be asked which versions it has; name versions, or declare a registry that does"
        )

    @staticmethod
    def _check(answer: requests.Response, url: str) -> None:
        if answer.status_code == 200:
            return
        reason = f"{url}: answered {answer.status_code} {answer.reason}"
        if answer.status_code >= 500 or answer.status_code in (408, 429):
            raise SourceError(reason)
        raise MissingFile(reason)


def source_of(place: str) -> Source:
    """A directory, or an address that begins with `http://` or `https://`."""
    scheme = urlsplit(place).scheme if "://" in place else ""
    if scheme in ("http", "https"):
        return HttpSource(place)
    if scheme:
        raise ValueError(
            f"{place}: expected a directory, http:// or https://, got {scheme}://; mount it as a directory"
        )
    return DirectorySource(Path(place))


def read_declared(path: Path) -> Registry:
    """The registry in `path`, which may be a link, as files of a ConfigMap are; `ArtifactError` where there is none."""
    if not path.is_file():
        raise ArtifactError(f"{path}: there is no registry")
    return RegistryFile.of(path.parent, path.resolve()).read()


def fetch(
    source: Source,
    registry_file: RegistryFile,
    *,
    declared: Registry | None = None,
    versions: Sequence[str] = (),
    trusted_keys: Sequence[PublicKey] = (),
    replace: bool = False,
    patience_s: float = PATIENCE_S,
    on_retry: Callable[[str], None] = lambda _: None,
) -> list[Fetched]:
    """Put what is declared into the store of `registry_file`: archives first, then the registry itself.

    Without `declared` the store's own registry says what the archives have to be. Where that is empty too, `versions`
    are taken, or all that the source has, and `serve` registers them. Raises `ArtifactError` for an archive that is
    not what it should be, and leaves what was in its place; `RegistryError` where the store's own registry has changes
    that `declared` lacks and is not to be replaced; `SourceError` for a source that fails for `patience_s` seconds.
    """
    own = registry_file.read()
    registry = own if declared is None else _chosen(registry_file, own, declared, replace)
    known = {version: record.digest for version, record in registry.versions.items()}
    if known and (strangers := [version for version in versions if version not in known]):
        raise ArtifactError(f"{', '.join(strangers)}: not in the registry, which has {', '.join(known)}")
    wanted = list(versions) or list(known) or source.versions()
    store = registry_file.store
    store.mkdir(parents=True, exist_ok=True)
    found = []
    for version in wanted:
        give_up_at = time.monotonic() + patience_s
        found.append(_fetch_one(source, store, version, known.get(version), trusted_keys, give_up_at, on_retry))
    if registry != own:
        with registry_file.locked() as present:
            if present != own or find_server(registry_file):
                raise RegistryError(f"{registry_file.path}: has changed meanwhile, or a server serves it; stop that")
            registry_file.write(registry)
    return found


def _chosen(registry_file: RegistryFile, own: Registry, declared: Registry, replace: bool) -> Registry:
    """`declared`, or the store's own registry where that has come further on the same way."""
    shared = min(own.sequence, declared.sequence)
    if own.history[:shared] == declared.history[:shared] and declared.sequence:
        return own if own.sequence > declared.sequence and not replace else declared
    if own.sequence and not replace:
        raise RegistryError(
            f"{registry_file.path}: has changes which the declared registry lacks; `--replace` gives them up"
        )
    return declared


def _fetch_one(
    source: Source,
    store: Path,
    version: str,
    expected: str | None,
    trusted_keys: Sequence[PublicKey],
    give_up_at: float,
    on_retry: Callable[[str], None],
) -> Fetched:
    target = store / archive_name(version)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=store) as scratch, naming(target):
        candidate = Path(scratch, target.name)
        unchanged = expected is not None and _is(target, expected)
        if unchanged:
            candidate.hardlink_to(target)
        else:
            digest = _patiently(source, candidate, MAX_BYTES, give_up_at, on_retry)
            if expected is not None and digest != expected:
                raise ArtifactError(
                    f"{version}: is not what the registry declares: expected {expected}, got {digest}; the archive was "
                    "changed, or another build of the version lies there"
                )
        if trusted_keys:
            _patiently(source, signature_path(candidate), MAX_FILE_BYTES, give_up_at, on_retry)
        unpacked = Path(scratch, "unpacked")
        unpacked.mkdir()
        checked = check_archive(candidate, unpacked, trusted_keys)
        if checked.card.version != version:
            raise ArtifactError(f"{candidate.name}: holds {checked.card.version}")
        if trusted_keys:
            signature_path(candidate).replace(signature_path(target))
        if not unchanged:
            candidate.replace(target)
    return Fetched(version, checked.digest, unchanged, checked.signed_by)


def _patiently(source: Source, target: Path, most: int, give_up_at: float, on_retry: Callable[[str], None]) -> str:
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            with target.open("wb") as file:
                return source.copy(target.name, file, most)
        except SourceError as error:
            if time.monotonic() + pause_s > give_up_at:
                raise
            on_retry(str(error))
            time.sleep(pause_s)
            pause_s *= 2


def _copy(pieces: Iterator[bytes], target: BinaryIO, name: str, most: int) -> str:
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        size += len(piece)
        if size > most:
            raise ArtifactError(f"{name}: larger than {most} bytes")
        digest.update(piece)
        target.write(piece)
    return f"sha256:{digest.hexdigest()}"


def _is(archive: Path, digest: str) -> bool:
    try:
        return file_digest(archive) == digest
    except OSError:
        return False
