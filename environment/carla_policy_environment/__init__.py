"""Driving simulators as services, and the Gymnasium environments that speak to them.

`simulators` holds what can be served: any Gymnasium environment, and CARLA. `service` serves one simulator over HTTP
and WebSocket, with episodes, exclusive sessions and snapshots. `spaces` and `arrays` are what goes over the wire: every
value arrives with the bits that the simulator gave it. Nothing here needs torch or TorchServe, so it can be installed
beside CARLA, away from both.
"""

from carla_policy_environment.branching import branch
from carla_policy_environment.carla_env import CarlaEnv
from carla_policy_environment.manager import EnvironmentManager
from carla_policy_environment.trajectories import collect_trajectory, select_top_k
from carla_policy_environment.vector_env import VectorizedCarlaEnv

__all__ = ["CarlaEnv", "EnvironmentManager", "VectorizedCarlaEnv", "branch", "collect_trajectory", "select_top_k"]
__version__ = "0.1.0"
