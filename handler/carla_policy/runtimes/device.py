"""Where a policy is to run: what the environment asks for."""

from __future__ import annotations

import os

from carla_policy.errors import ArtifactError

DEVICE_VARIABLE = "CARLA_POLICY_DEVICE"
DEVICES = ("auto", "cpu", "cuda")


def wanted_device() -> str:
    """`auto`, `cpu` or `cuda`; `ArtifactError` where the environment says anything else."""
    wanted = os.environ.get(DEVICE_VARIABLE, "auto")
    if wanted not in DEVICES:
        raise ArtifactError(f"{DEVICE_VARIABLE}={wanted}: expected auto, cpu or cuda")
    return wanted
