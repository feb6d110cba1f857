"""Read a Dockerfile and its `.dockerignore`, as far as this project's use them; anything else is an error."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

_KNOWN = re.compile(
    "ARG|FROM|SHELL|WORKDIR|COPY|RUN|LABEL|VOLUME|ENV|USER|EXPOSE|STOPSIGNAL|HEALTHCHECK|ENTRYPOINT|CMD"
)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True)
class Instruction:
    name: str
    flags: dict[str, str]
    """`--from=build` as `{"from": "build"}`."""
    text: str

    @property
    def words(self) -> list[str]:
        """Those of a JSON list, or those that blanks divide."""
        return json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)


def read(path: Path) -> list[Instruction]:
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    found = []
    for statement in re.sub(r"\\\n", "", "\n".join(lines)).splitlines():
        if not statement.strip():
            continue
        name, _, rest = statement.strip().partition(" ")
        assert _KNOWN.fullmatch(name), f"{name}: not known here"
        flags = {}
        while match := re.match(r"\s*--([a-z-]+)=(\S+)\s*", rest):
            flags[match[1]] = match[2]
            rest = rest[match.end() :]
        found.append(Instruction(name, flags, rest.strip()))
    return found


def stages(instructions: list[Instruction]) -> list[list[Instruction]]:
    """What stands before the first FROM, then each stage beginning with its FROM."""
    found: list[list[Instruction]] = [[]]
    for instruction in instructions:
        if instruction.name == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


def substitute(text: str, variables: Mapping[str, str]) -> str:
    """`text` with `$NAME` and `${NAME}` replaced; a name that nobody has set is an error."""
    return _VARIABLE.sub(lambda match: variables[match[1] or match[2]], text)


class Ignored:
    """Which paths of a build's context do not reach the engine: the last pattern that matches decides."""

    def __init__(self, path: Path) -> None:
        lines = (line.strip() for line in path.read_text().splitlines())
        self._patterns = [line for line in lines if line and not line.startswith("#")]

    def __call__(self, path: Path) -> bool:
        ignored = False
        for pattern in self._patterns:
            wanted = pattern.removeprefix("!")
            if any(_matches(candidate, wanted) for candidate in (path, *path.parents)):
                ignored = wanted == pattern
        return ignored


def _matches(path: Path, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch(path.name, pattern.removeprefix("**/"))
    parts, wanted = path.parts, Path(pattern).parts
    return len(parts) == len(wanted) and all(map(fnmatch, parts, wanted))
