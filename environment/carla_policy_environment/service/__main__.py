"""`python -m carla_policy_environment.service --env CartPole-v1`: serve a simulator without carla-policy's tools."""

from __future__ import annotations

import sys

from carla_policy_environment.service.command import main

sys.exit(main())
