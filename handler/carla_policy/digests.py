"""SHA-256 digests: of single files, and of the exact set of files that makes up a packaged version.

A packaged version carries `digests.json`, which lists every other file of it. The list is exact: a missing, an extra
or a changed file is refused, and all of them are named at once. The list itself has one spelling only, so that no
byte of it can change unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from carla_policy.errors import ArtifactError
from carla_policy.files import open_file, read_file

DIGESTS_FILE = "digests.json"
MAX_LIST_BYTES = 1 << 20
_OWN_BYTECODE = re.compile(r"__pycache__/policy_handler\.[a-z0-9-]+\.pyc")
"""What the interpreter may leave beside the handler in a worker's directory, before the handler forbids it."""


def sha256(data: bytes) -> str:
    """`sha256:<64 hex digits>` of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def file_digest(path: Path) -> str:
    """`sha256:<64 hex digits>` of the content of a plain file; `OSError` where there is none."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def directory_digests(directory: Path) -> dict[str, str]:
    """Digest of every file below `directory` but `digests.json`, by its path with forward slashes.

    `ArtifactError` for what is no plain file: a link's target may change, and one to a directory would hide modules.
    """
    names = {path: path.relative_to(directory).as_posix() for path in sorted(directory.rglob("*"))}
    if strangers := [name for path, name in names.items() if not _is_plain(path)]:
        raise ArtifactError(f"{', '.join(strangers)}: expected plain files, got a link or device; it may change")
    names = {path: name for path, name in names.items() if path.is_file()}
    return {name: file_digest(path) for path, name in names.items() if name != DIGESTS_FILE}


def _is_plain(path: Path) -> bool:
    return not path.is_symlink() and (path.is_file() or path.is_dir())


def dump_digests(digests: Mapping[str, str]) -> str:
    """The one spelling of `digests.json`; under its own name stands the digest of the rest."""
    ordered = dict(sorted(digests.items()))
    own = sha256(json.dumps(ordered, indent=1).encode())
    return json.dumps({DIGESTS_FILE: own, **ordered}, indent=1) + "\n"


def verify_directory(directory: Path) -> dict[str, str]:
    """Hold `directory` against its `digests.json` and return the digests; `ArtifactError` names every difference."""
    try:
        text = read_file(directory / DIGESTS_FILE, MAX_LIST_BYTES).decode()
        expected = json.loads(text)
    except ArtifactError:
        raise
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{DIGESTS_FILE}: cannot be read: {error}") from None
    strings = isinstance(expected, dict) and all(isinstance(value, str) for value in expected.values())
    listed = {name: digest for name, digest in expected.items() if name != DIGESTS_FILE} if strings else {}
    if dump_digests(listed) != text:
        raise ArtifactError(f"{DIGESTS_FILE}: content has changed; build the version again")
    actual = directory_digests(directory)
    compare_digests(listed, {n: d for n, d in actual.items() if not _OWN_BYTECODE.fullmatch(n)}, listed_in=DIGESTS_FILE)
    return listed


def compare_digests(expected: Mapping[str, str], actual: Mapping[str, str], *, listed_in: str) -> None:
    """`ArtifactError` unless both name the same files with the same digests; every file that differs is named."""
    problems = [f"{name}: missing, but listed in {listed_in}" for name in sorted(expected.keys() - actual.keys())]
    problems += [f"{name}: not listed in {listed_in}" for name in sorted(actual.keys() - expected.keys())]
    problems += [
        f"{name}: content has changed: expected {expected[name]} ({listed_in}), got {actual[name]}"
        for name in sorted(expected.keys() & actual.keys())
        if expected[name] != actual[name]
    ]
    if problems:
        raise ArtifactError("; ".join(problems))
