"""One version's section of the changelog, as notes of its release: `python -m carla_policy_tools.changelog 0.1.0`."""

from __future__ import annotations

import re
import sys

from carla_policy_tools.paths import PROJECT


def section(text: str, version: str) -> str:
    """What stands below the heading of `version`; `ValueError` if there is none, or nothing below it."""
    found = re.search(rf"^## {re.escape(version)}\b[^\n]*\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    notes = found.group(1).strip() if found else ""
    if not notes:
        raise ValueError(f"CHANGELOG.md: has no section {version}; write one before the tag")
    return notes + "\n"


if __name__ == "__main__":
    try:
        print(section((PROJECT / "CHANGELOG.md").read_text(), sys.argv[1]), end="")
    except ValueError as error:
        sys.exit(f"error: {error}")
