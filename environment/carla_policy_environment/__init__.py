"""Driving simulators as services, and the Gymnasium environments that speak to them.

`simulators` holds what can be served: any Gymnasium environment, and CARLA. `service` serves one simulator over HTTP
and WebSocket, with episodes, exclusive sessions and snapshots. `spaces` and `arrays` are what goes over the wire: every
value arrives with the bits that the simulator gave it. Nothing here needs torch or TorchServe, so it can be installed
beside CARLA, away from both.
"""

__version__ = "0.1.0"
