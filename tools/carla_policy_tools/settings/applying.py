"""What a running server takes over: `config apply` leaves it in the run directory, and `serve` makes it its own."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

from carla_policy_tools.lifecycle.endpoint import Endpoint, find_server
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.settings.effects import write_log_level
from carla_policy_tools.settings.model import LIVE
from carla_policy_tools.settings.sources import parse

REQUEST_FILE = "apply.json"
TIMEOUT_S = 5.0
_POLL_S = 0.02


def ask(registry_file: RegistryFile, endpoint: Endpoint, values: dict[str, Any], sources: dict[str, str]) -> None:
    """Have the server take over `values`; returns when it has, `RegistryError` if it does not in time."""
    new = endpoint.run_dir / f".{REQUEST_FILE}.new"
    new.write_text(json.dumps({"values": values, "sources": sources}), "utf-8")
    new.replace(endpoint.run_dir / REQUEST_FILE)
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        found = find_server(registry_file)
        if found and found.settings | values == found.settings and found.sources | sources == found.sources:
            return
        time.sleep(_POLL_S)
    (endpoint.run_dir / REQUEST_FILE).unlink(missing_ok=True)
    raise RegistryError(f"the server has not taken over {', '.join(values)} within {TIMEOUT_S:g} s; see its output")


def take_over(endpoint: Endpoint) -> Endpoint | None:
    """What the server is from now on, if somebody has asked for other settings; what does not fit is left out."""
    path = endpoint.run_dir / REQUEST_FILE
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = path.read_bytes()
        path.unlink()
        asked = json.loads(content)
        values = {name: parse(name, asked["values"][name], "config apply") for name in asked["values"] if name in LIVE}
        sources = {name: str(asked["sources"][name]) for name in values}
        if "log_level" in values:
            write_log_level(endpoint.run_dir, values["log_level"])
        update: dict[str, Any] = {
            "settings": {**endpoint.settings, **values},
            "sources": {**endpoint.sources, **sources},
        }
        if "workers" in values:
            update["workers"] = values["workers"]
        return endpoint.model_copy(update=update)
    return None
