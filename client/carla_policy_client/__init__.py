"""The vehicle side of a served policy: an action in every step, within a deadline, whatever the server does.

`PolicyClient(url).act(observation)` is all that a control loop needs. What the vehicle does in a step without an
answer is a `fallback`: an `Action`, `Hold` or `Decay`.
"""

from carla_policy_client.actions import Action
from carla_policy_client.aio import AsyncPolicyClient
from carla_policy_client.client import PolicyClient
from carla_policy_client.fallbacks import Decay, Fallback, Hold
from carla_policy_client.misses import REASONS
from carla_policy_client.observations import Observation
from carla_policy_client.statistics import Statistics

__version__ = "0.1.0"
__all__ = [
    "REASONS",
    "Action",
    "AsyncPolicyClient",
    "Decay",
    "Fallback",
    "Hold",
    "Observation",
    "PolicyClient",
    "Statistics",
]
