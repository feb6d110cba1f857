"""What somebody who starts a server should know about its settings."""

from __future__ import annotations

from collections.abc import Iterator

from carla_policy_tools.addresses import is_local
from carla_policy_tools.settings.model import Settings


def exposure(settings: Settings) -> Iterator[str]:
    """Who can reach what, where a server listens beyond this machine."""
    if is_local(settings.host):
        return
    if settings.token_auth:
        yield (
            f"listens on {settings.host}: predictions ask for a key, which travels without TLS; metrics and health ask "
            "for none. Put the authenticating proxy before it, see SECURITY.md"
        )
    else:
        yield (
            f"listens on {settings.host}: whoever reaches it can ask for predictions and read metrics, without a "
            "password or TLS. Put the authenticating proxy before it and let nobody else in, see SECURITY.md"
        )
