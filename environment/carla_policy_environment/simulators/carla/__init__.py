"""CARLA 0.9.15 and 0.9.16 as a simulator, through its Python client: see carla.md beside the environment's README."""

from carla_policy_environment.simulators.carla.config import CarlaConfig
from carla_policy_environment.simulators.carla.config_files import configured, load_config
from carla_policy_environment.simulators.carla.simulator import CarlaSimulator, make_simulator

__all__ = ["CarlaConfig", "CarlaSimulator", "configured", "load_config", "make_simulator"]
