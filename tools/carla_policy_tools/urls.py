"""Where a server answers what, and how it is asked."""

from __future__ import annotations

import requests
from requests.auth import AuthBase

from carla_policy_tools.paths import MODEL_NAME


def local_session(auth: AuthBase | None = None) -> requests.Session:
    """Connections to servers of one's own, past any proxy that the environment names; `auth` for one in token mode."""
    session = requests.Session()
    session.trust_env = False
    session.auth = auth
    return session


def prediction_url(base: str, version: str | None, model: str = MODEL_NAME) -> str:
    """Where `version`, or the promoted one for `None`, answers predictions."""
    return f"{base.rstrip('/')}/predictions/{model}" + (f"/{version}" if version else "")
