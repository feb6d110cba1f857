"""YAML without its surprises: one document of plain types; no tags, no aliases, no key twice."""

from __future__ import annotations

import re
from typing import Any

import yaml

from carla_policy.errors import ArtifactError

MAX_BYTES = 1 << 20
FLOAT_OF_YAML_1_2 = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")


def parse_yaml(data: bytes, name: str) -> Any:
    """The one document in `data`; `ArtifactError` begins with `name`."""
    if len(data) > MAX_BYTES:
        raise ArtifactError(f"{name}: larger than {MAX_BYTES >> 20} MiB")
    try:
        return yaml.load(data, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ArtifactError(f"{name}: not readable as YAML: {' '.join(str(error).split())}") from None


class _StrictLoader(yaml.SafeLoader):
    """Also reads `1e-6` as the number that it is in YAML 1.2, where PyYAML's 1.1 sees a string."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError("aliases are not allowed")
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(f"tags are not allowed, got {event.tag!r}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        seen: set[str] = set()
        for key in keys:
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a string", node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT_OF_YAML_1_2, list("-+0123456789"))
