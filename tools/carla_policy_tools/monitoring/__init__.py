"""Watching a server: Prometheus and Alertmanager with this project's configuration, and Grafana's dashboards.

`python -m carla_policy_tools.monitoring` (`make monitor`) runs the two beside a server; `programs` gets them without
root, `dashboards` writes the dashboards, `picture` draws them from a Prometheus.
"""
