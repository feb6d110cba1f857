"""Where a server answers what."""

from __future__ import annotations

from carla_policy_tools.paths import MODEL_NAME


def prediction_url(base: str, version: str | None, model: str = MODEL_NAME) -> str:
    """Where `version`, or the promoted one for `None`, answers predictions."""
    return f"{base.rstrip('/')}/predictions/{model}" + (f"/{version}" if version else "")
