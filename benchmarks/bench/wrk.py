"""wrk, an HTTP load generator in C: a closed loop that Python clients cannot keep up with.

On the PATH, or in `build/wrk`, unpacked from Debian's package without root: `python -m benchmarks.bench.wrk`. A script
in Lua gives each request the next of several bodies and prints the whole histogram of latencies at the end. wrk
counts every answer, and those with a status of 400 or more apart.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench.histograms import Histogram
from carla_policy_tools.debian import PackageError, Program, unpack_package, unpacked_program
from carla_policy_tools.paths import PROJECT

UNPACKED = PROJECT / "build" / "wrk"
ANSWER_TIMEOUT_S = 5
_MARK = "RESULT "
_SCRIPT = """
local bodies = {%s}
local prepared, number = {}, 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
function init(args)
  for index, body in ipairs(bodies) do prepared[index] = wrk.format(nil, nil, nil, body) end
end
function request()
  number = number %% #prepared + 1
  return prepared[number]
end
function done(summary, latency, requests)
  local pairs = {}
  for index = 1, #latency do
    local value, count = latency(index)
    pairs[index] = string.format("[%%d,%%d]", value, count)
  end
  local errors = summary.errors
  io.write(string.format(
    '\\nRESULT {"requests":%%d,"duration_us":%%d,"refused":%%d,"broken":%%d,"latencies_us":[%%s]}\\n',
    summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout, table.concat(pairs, ",")))
end
"""


@dataclass(frozen=True)
class Run:
    """What wrk counted: answers, those of status 400 or more, requests that got none, and the answers' latencies."""

    requests: int
    seconds: float
    refused: int
    broken: int
    latencies: Histogram


def find_wrk() -> Program | None:
    """Wrk on the PATH or in `build/wrk`."""
    on_path = shutil.which("wrk")
    return Program(Path(on_path), dict(os.environ)) if on_path else unpacked_program(UNPACKED, "usr/bin/wrk")


def install() -> Program:
    """Wrk, put into `build/wrk` if there is none yet; `PackageError` if apt does not know it."""
    if find_wrk() is None:
        unpack_package("wrk", UNPACKED)
    found = find_wrk()
    if found is None:
        raise PackageError("the package wrk holds no usr/bin/wrk")
    return found


def run_wrk(program: Program, url: str, bodies: Sequence[str], *, connections: int, seconds: int) -> Run:
    """Keep `connections` busy for whole `seconds`, each with one request at a time.

    Raises `RuntimeError` with wrk's own words where it does not run.
    """
    with tempfile.TemporaryDirectory(prefix="bench-wrk-") as scratch:
        script = Path(scratch, "requests.lua")
        script.write_text(_SCRIPT % ",".join(f"[==[{body}]==]" for body in bodies))
        options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", f"{ANSWER_TIMEOUT_S}s", "-s", str(script)]
        run = subprocess.run(
            [program.executable, *options, url],
            env=program.environment,
            capture_output=True,
            text=True,
            timeout=seconds + ANSWER_TIMEOUT_S + 10,
            check=False,
        )
    line = next((line for line in run.stdout.splitlines() if line.startswith(_MARK)), None)
    if line is None:
        raise RuntimeError(f"wrk, status {run.returncode}: {(run.stderr or run.stdout).strip()[-300:]}")
    result = json.loads(line.removeprefix(_MARK))
    return Run(
        requests=result["requests"],
        seconds=result["duration_us"] / 1e6,
        refused=result["refused"],
        broken=result["broken"],
        latencies=Histogram.of_counts(result["latencies_us"]),
    )


if __name__ == "__main__":
    try:
        print(f"wrk: {install().executable}")
    except PackageError as error:
        sys.exit(f"error: {error}")
