"""What keeps a gate from coming to a result."""

from __future__ import annotations

from carla_policy_tools.lifecycle.registry import RegistryError


class GateError(RegistryError):
    """The gate could not be driven to its end; nothing has been promoted."""
