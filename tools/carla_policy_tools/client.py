"""Talk to a running server from the command line and from tests. The vehicle side has a client of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from requests.auth import AuthBase

from carla_policy.arrays import parse_arrays
from carla_policy.card import GOLDEN_FILE
from carla_policy.errors import ArtifactError
from carla_policy.golden import FloatArray
from carla_policy_tools.archive import read_entry
from carla_policy_tools.paths import MODEL_NAME
from carla_policy_tools.urls import local_session, prediction_url

TIMEOUT_S = 10.0


class RefusedRequest(RuntimeError):
    """The server answered with an error; `answer` is its body."""

    def __init__(self, status: int, answer: Mapping[str, Any]) -> None:
        super().__init__(f"{status} {answer.get('type', '')}: {answer.get('message', '')}")
        self.status = status
        self.answer = answer


def request_body(
    observations: FloatArray, *, deterministic: bool = True, seed: int | None = None, episode_start: bool = False
) -> dict[str, Any]:
    """The request for `observations` `[rows, 2 + sensors]`; each number reads back as the same float32.

    `episode_start` begins the episode of a recurrent policy.
    """
    rows = [[float(str(value)) for value in row] for row in observations]
    body: dict[str, Any] = {
        "observations": [{"speed": row[0], "steering": row[1], "sensors": row[2:]} for row in rows],
        "deterministic": deterministic,
    }
    if episode_start:
        body["episode_start"] = True
    return body if seed is None else {**body, "seed": seed}


def predict(base: str, version: str | None, body: bytes, auth: AuthBase | None = None) -> dict[str, Any]:
    """POST `body` and return the answer; `RefusedRequest` for an error, `requests.RequestException` for no answer."""
    headers = {"Content-Type": "application/json"}
    with local_session(auth) as session:
        response = session.post(prediction_url(base, version), data=body, headers=headers, timeout=TIMEOUT_S)
    try:
        answer = response.json()
    except ValueError:
        answer = {"message": response.text[:200] or response.reason}
    if not response.ok:
        raise RefusedRequest(response.status_code, answer)
    return dict(answer)


def promoted_version(base: str, auth: AuthBase | None = None) -> str:
    """The version that answers where none is named: every answer of the handler carries it as a header."""
    with local_session(auth) as session:
        response = session.get(prediction_url(base, None), timeout=TIMEOUT_S)
    version = response.headers.get("x-policy-version")
    if version is None:
        raise RefusedRequest(response.status_code, {"message": f"{base} serves no {MODEL_NAME}: {response.text[:200]}"})
    return version


def golden_observations(archive: Path) -> tuple[FloatArray, bool]:
    """The observations `[rows, 2 + sensors]` of the golden vectors in an archive, and whether it is recurrent."""
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: no archive to take a golden observation from; build it, or send a --file")
    try:
        golden = parse_arrays(read_entry(archive, GOLDEN_FILE), GOLDEN_FILE)
        observations: FloatArray = golden["observations"]
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"{archive}: holds no golden observations that can be read: {error}") from None
    return observations, "states" in golden


def curl_command(base: str, version: str, request: Mapping[str, Any], key_file: Path | None = None) -> str:
    """`request`, asked of `version`, as a command to paste; it reads the key that a server asks for from a file."""
    body = json.dumps(request, separators=(",", ":"))
    read = f"json.load(open('{key_file}'))['inference']['key']"
    key = f' -H "Authorization: Bearer $(python3 -c "import json; print({read})")"' if key_file else ""
    return f"curl -X POST {prediction_url(base, version)}{key} -H 'Content-Type: application/json' -d '{body}'"
