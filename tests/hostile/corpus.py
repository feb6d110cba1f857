"""The parsing set of JSONTestSuite (Nicolas Seriot, MIT): documents to accept, to refuse, or to treat either way.

The first letter of a file's name says which: `y`, `n` or `i`.
"""

from __future__ import annotations

from pathlib import Path

DIRECTORY = Path(__file__).parents[1] / "corpora" / "json-test-suite" / "test_parsing"
FILES = sorted(path.name for path in DIRECTORY.iterdir())

BLANK = {"n_single_space.json", "n_structure_no_data.json"}
WITH_DUPLICATES = {"y_object_duplicated_key.json", "y_object_duplicated_key_and_value.json"}


def document(name: str) -> bytes:
    return (DIRECTORY / name).read_bytes()


def expected(name: str) -> set[tuple[int, str]]:
    """What the file by itself, none of which is a request, may be answered with."""
    if name in BLANK:
        return {(400, "EMPTY_BODY")}
    if name in WITH_DUPLICATES:
        return {(400, "DUPLICATE_KEY")}
    if name.startswith("y"):
        return {(422, "SCHEMA")}
    broken = {(400, kind) for kind in ("INVALID_JSON", "INVALID_ENCODING")}
    return broken if name.startswith("n") else broken | {(422, "SCHEMA")}


def is_broken_inside(name: str) -> bool:
    """Whether the file is no JSON between the brackets and commas of another document either."""
    return name.startswith("n") and name not in BLANK
