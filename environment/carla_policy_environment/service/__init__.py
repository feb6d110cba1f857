"""One simulator as a service: episodes, sessions, snapshots and telemetry over HTTP and WebSocket."""
