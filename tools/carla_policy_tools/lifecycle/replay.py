"""The last gate before a version is registered: golden observations, asked over HTTP from the running server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import requests
from requests.auth import AuthBase

from carla_policy_tools.lifecycle.registry import RegistryError
from carla_policy_tools.urls import local_session


def replay(
    url: str,
    version: str,
    probes: Sequence[Mapping[str, Any]],
    atol: float,
    timeout_s: float,
    auth: AuthBase | None = None,
) -> dict[str, int]:
    """Ask `version` at `url` every probe of a verified archive; counts of actions and of those with the same bits.

    A probe is a request and the actions that the archive answered to it when it was verified alone. Raises
    `RegistryError` at the first number that differs by more than `atol`, and for an answer that takes longer than
    `timeout_s`.
    """
    actions = bit_equal = 0
    with local_session(auth) as session:
        for probe in probes:
            answer = _ask(session, url, version, probe["request"], timeout_s)
            if answer.get("version") != version or len(answer["actions"]) != len(probe["actions"]):
                raise RegistryError(f"{version}: a golden request was answered with {str(answer)[:200]}")
            for expected, got in zip(probe["actions"], answer["actions"], strict=True):
                for name, value in expected.items():
                    if not abs(got[name] - value) <= atol:
                        raise RegistryError(
                            f"{version}: golden observation {actions}, {name}: expected {value!r}, the server answers "
                            f"{got[name]!r} (tolerance {atol:g})"
                        )
                actions += 1
                bit_equal += got == expected
    return {"actions": actions, "bit_equal": bit_equal}


def _ask(
    session: requests.Session, url: str, version: str, request: Mapping[str, Any], timeout_s: float
) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    try:
        answer = session.post(url, data=json.dumps(request).encode(), headers=headers, timeout=timeout_s)
    except requests.RequestException as error:
        reason = f"no answer within {timeout_s:g} s" if isinstance(error, requests.Timeout) else str(error)
        raise RegistryError(f"{version}: a golden request failed: {reason}; does the handler hang?") from None
    if not answer.ok:
        raise RegistryError(f"{version}: a golden request was refused with {answer.status_code}: {answer.text[:200]}")
    return dict(answer.json())
