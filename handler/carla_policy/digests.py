"""SHA-256 digests: of single files, and of the exact set of files that makes up a packaged version.

A packaged version carries `digests.json`, which lists every other file of it. The list is exact: a missing, an extra
or a changed file is refused, and all of them are named at once. The list itself has one spelling only, so that no
byte of it can change unnoticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from carla_policy.errors import ArtifactError

DIGESTS_FILE = "digests.json"
BYTECODE_DIRECTORY = "__pycache__"
"""The interpreter's own by-product: absent from archives, but it may appear beside loaded modules."""


def sha256(data: bytes) -> str:
    """`sha256:<64 hex digits>` of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def file_digest(path: Path) -> str:
    """`sha256:<64 hex digits>` of a file's content."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def directory_digests(directory: Path) -> dict[str, str]:
    """Digest of every file below `directory` but `digests.json`, by its path with forward slashes."""
    return {
        name: file_digest(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
        and (name := path.relative_to(directory).as_posix()) != DIGESTS_FILE
        and BYTECODE_DIRECTORY not in path.parts
    }


def dump_digests(digests: Mapping[str, str]) -> str:
    """The one spelling of `digests.json`."""
    return json.dumps(dict(sorted(digests.items())), indent=1) + "\n"


def verify_directory(directory: Path) -> dict[str, str]:
    """Hold `directory` against its `digests.json` and return the digests; `ArtifactError` names every difference."""
    listing = directory / DIGESTS_FILE
    try:
        text = listing.read_text("utf-8")
        expected = json.loads(text)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{DIGESTS_FILE}: cannot be read: {error}") from None
    strings = isinstance(expected, dict) and all(isinstance(value, str) for value in expected.values())
    if not strings or dump_digests(expected) != text:
        raise ArtifactError(f"{DIGESTS_FILE}: not as written by the build; build the version again")
    compare_digests(expected, directory_digests(directory), listed_in=DIGESTS_FILE)
    return dict(expected)


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
