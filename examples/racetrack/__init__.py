"""A racetrack to drive on: environment, training, export and closed-loop evaluation.

- `sensors`: ray distances to the road's borders and to vehicles, and lane-relative terms;
- `driving_env`: `DrivingEnv`, highway-env's racetrack seen through `speed, steering, sensors`;
- `train`: PPO from stable-baselines3, one reproducible command;
- `record`: checkpoint + scaler -> an artifact directory with golden vectors;
- `evaluate`: mean return and episode length of artifacts over seeded episodes.
"""
