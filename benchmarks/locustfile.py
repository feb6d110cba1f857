"""Load tests with Locust against a running server, or a proxy in front: `locust -f benchmarks/locustfile.py`.

The users are in `locust_users/users.py`. Headless, the exit status is 0 only if every answer was right and every goal
of `--slo` that was measured is met; what failed is told on standard error.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import locust.stats
from locust import events
from locust.runners import MasterRunner, WorkerRunner

from benchmarks.locust_users.goals import bucket, judge, load_goals, problems
from benchmarks.locust_users.options import add_options
from benchmarks.locust_users.served import NotServed, forget
from benchmarks.locust_users.users import Evaluator, FaultyClient, MixedFleet, Vehicle

__all__ = ["Evaluator", "FaultyClient", "MixedFleet", "Vehicle"]


def _prepare(environment: Any, **_: Any) -> None:
    """Make the requests before the first user sends one: it takes time, and users share a thread."""
    if isinstance(environment.runner, MasterRunner):
        return
    forget()
    for user_class in environment.user_classes:
        user_class.forget()
        with suppress(NotServed):  # the first user says so, which ends the test
            user_class.prepare(environment.host or user_class.host, environment.parsed_options)


def _judge(environment: Any, **_: Any) -> None:
    """Hold the run against its goals, tell what became of each, and set the exit status."""
    options, stats, runner = environment.parsed_options, environment.stats, environment.runner
    if isinstance(runner, WorkerRunner):
        options.json, options.json_file = False, None  # or Locust writes each worker's empty list among the results
        return
    judged = judge(stats, load_goals(Path(options.slo)))
    found = problems(stats, len(runner.exceptions), judged, options.max_failures)
    total = stats.total
    lines = [f"{total.num_requests:,} requests, {total.num_failures:,} failed or answered wrongly"]
    lines += [f"  {one.outcome:<12} {one.told}" for one in judged]
    lines += [f"  FAILED {problem}" for problem in found]
    if runner.cpu_warning_emitted or runner.worker_cpu_warning_emitted:
        lines.append("  Locust itself was short of processor time: its latencies are not the server's alone")
    print("\n".join(lines), file=sys.stderr)
    if options.summary:
        goals = [{**one.goal.model_dump(), "measured": one.measured, "outcome": one.outcome} for one in judged]
        counts = {"requests": total.num_requests, "failed": total.num_failures}
        Path(options.summary).write_text(json.dumps({**counts, "goals": goals, "problems": found}))
    environment.process_exit_code = 1 if found else 0


locust.stats.bucket_response_time = bucket  # type: ignore[assignment,unused-ignore]
_events: Any = events
_events.init_command_line_parser.add_listener(add_options)
_events.test_start.add_listener(_prepare)
_events.quitting.add_listener(_judge)
