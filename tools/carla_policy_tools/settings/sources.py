"""What deployment files and environment variables say about settings, each mistake told with its place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from carla_policy.files import read_file
from carla_policy.strict_yaml import MAX_BYTES, parse_yaml
from carla_policy_tools.paths import CONFIG
from carla_policy_tools.settings.model import ABOUT, NAMES, PATHS, PREFIX, Settings, variables_of

DEPLOYMENTS = CONFIG / "deployments"
DEPLOYMENT_VARIABLE = f"{PREFIX}DEPLOYMENT"
DEFAULT_DEPLOYMENT = "local"

OTHER_VARIABLES = frozenset(
    PREFIX + name
    for name in (
        "ACCESS_EVENTS_PER_S",
        "DRAIN_FILE",
        "FETCH_TOKEN",
        "GATE_ADDRESS",
        "GATE_SERVER",
        "GATE_TOKENS",
        "IMAGE_TEST",
        "KEY_PASSPHRASE",
        "LOG_LEVEL_FILE",
        "MAX_RESPONSE_BYTES",
        "PROXY_ADDRESS",
        "PROXY_CONFIG",
        "PROXY_RUN",
        "PROXY_SERVER_TIMEOUT",
        "PROXY_UPSTREAM",
        "STATE_KEY",
        "TAG",
    )
)
"""Of this project, but no settings of a server: for the proxies, for signing, for images and their tests, and what
`serve` tells its workers."""

_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)(_|$)|_PORT_\d+_(TCP|UDP|SCTP)(_|$)")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")


def deployment_names() -> list[str]:
    return sorted(path.stem for path in DEPLOYMENTS.glob("*.yaml"))


def deployment_file(name: str) -> Path:
    """The file of the deployment `name`, which may be a path of one; `ValueError` says which there are."""
    path = Path(name) if name.endswith(".yaml") else DEPLOYMENTS / f"{name}.yaml"
    if not path.is_file():
        near = _suggestion(name, deployment_names())
        raise ValueError(
            f"there is no deployment {name!r}{near}: choose one of {', '.join(deployment_names())}, or name a .yaml "
            "file"
        )
    return path


def read_deployment(path: Path) -> dict[str, Any]:
    """What a deployment file says, checked as a whole; its paths are relative to it. `ValueError` names the key."""
    content = parse_yaml(read_file(path.resolve(), MAX_BYTES), str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected settings, one a line, such as `port: 8080`; got {content!r:.80}")
    for key in content:
        if key not in NAMES:
            raise ValueError(
                f"{path}: {key}: there is no such setting{_suggestion(key, NAMES)}; settings are {', '.join(NAMES)}"
            )
    stated = {key: parse(key, value, f"{path}: {key}") for key, value in content.items()}
    directory = path.absolute().parent
    return {
        key: directory / value if key in PATHS and isinstance(value, Path) else _own_profile(key, value, directory)
        for key, value in stated.items()
    }


def read_variables(environment: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    """Settings that are in the environment: the variable that says each, and what it says; empty ones say nothing."""
    found = {}
    for name in NAMES:
        for variable in variables_of(name):
            text = environment.get(variable, "").strip()
            if text and not _SERVICE_URL.match(text):
                found[name] = (variable, parse(name, text, variable, from_text=True))
                break
    return found


def check_names(environment: Mapping[str, str]) -> None:
    """`ValueError` for a variable with our prefix that nothing reads: it is mistyped.

    What Kubernetes sets for a Service that is called carla-policy is not meant for us, and passed over.
    """
    own = {f"{PREFIX}{name.upper()}" for name in NAMES} | {DEPLOYMENT_VARIABLE}
    for variable in sorted(environment):
        if not variable.startswith(PREFIX) or variable in own | OTHER_VARIABLES or _SERVICE_LINK.search(variable):
            continue
        if _SERVICE_URL.match(environment[variable]):
            continue
        near = _suggestion(variable, sorted(own | OTHER_VARIABLES))
        raise ValueError(f"{variable}: nothing reads this variable{near}; unset it")


def parse(name: str, value: Any, source: str, *, from_text: bool = False) -> Any:
    """`value` as the setting `name` has it; `ValueError` says what was expected of `source`, and what came."""
    if name in PATHS and value == "":
        raise _refused(name, value, source)
    try:
        if from_text:
            return getattr(Settings.model_validate_strings({name: value}, strict=False), name)
        return getattr(Settings.model_validate({name: value}), name)
    except ValidationError:
        raise _refused(name, value, source) from None


def _refused(name: str, value: Any, source: str) -> ValueError:
    return ValueError(f"{source}: expected {ABOUT[name].expected}, got {value!r:.80}")


def _own_profile(key: str, value: Any, directory: Path) -> Any:
    """A profile's file is named relative to the deployment's; a profile's name is one everywhere."""
    return str(directory / value) if key == "profile" and isinstance(value, str) and value.endswith(".yaml") else value


def _suggestion(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""
