"""What the vehicle's client costs a step: `python -m benchmarks.vehicle_client --steps 2000`.

Asks the same prediction of a server that answers at once, in a process of its own, over one kept connection: by
`PolicyClient.act`, by `http.client` and by requests, in turns. Prints the medians of the processor time that the caller
spends, and how they compare. The others do less: they have no deadline, and believe whatever comes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import re
import socket
import statistics
import time
from collections.abc import Callable

import requests

from carla_policy_client import PolicyClient

SENSORS = 28
BODY = json.dumps({"observations": [{"speed": 8.0, "steering": 0.0, "sensors": [12.5] * SENSORS}]}).encode()
ROW = [8.0, 0.0, *[12.5] * SENSORS]
JSON_HEADERS = {"Content-Type": "application/json"}
ROUNDS = 20
_PATH = "/predictions/carla_policy"
_ACTION = {"throttle": 0.26208728551864624, "brake": 0.0, "steer": -0.12435738742351532}
_ANSWER = json.dumps({"actions": [_ACTION], "version": "v1.0.0", "timingMs": 0.8, "deterministic": True}).encode()
_ID = re.compile(rb"x-request-id: ([^\r\n]+)")
_LENGTH = re.compile(rb"content-length: ([0-9]+)", re.IGNORECASE)


def serve(listener: socket.socket) -> None:
    """Answer one connection after the other, at once."""
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = b""
        while True:
            piece = connection.recv(65536)
            if not piece:
                break
            data += piece
            head, end, body = data.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if end and length and len(body) >= int(length[1]):
                identity = _ID.search(head)
                fields = [b"HTTP/1.1 200 OK", b"content-type: application/json", b"content-length: %d" % len(_ANSWER)]
                if identity:
                    fields.append(b"x-client-request-id: " + identity[1])
                connection.sendall(b"\r\n".join([*fields, b"", _ANSWER]))
                data = b""
        connection.close()


def with_http_client(port: int) -> Callable[[], object]:
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def ask() -> object:
        connection.request("POST", _PATH, BODY, JSON_HEADERS)
        return json.loads(connection.getresponse().read())["actions"][0]

    return ask


def with_requests(port: int) -> Callable[[], object]:
    session = requests.Session()
    session.trust_env = False
    url = f"http://127.0.0.1:{port}{_PATH}"
    return lambda: session.post(url, data=BODY, headers=JSON_HEADERS).json()["actions"][0]


def with_policy_client(port: int) -> Callable[[], object]:
    client = PolicyClient(f"http://127.0.0.1:{port}", deadline_s=1.0)

    def act() -> object:
        action = client.act(ROW)
        assert action.source == "policy", action.message
        return action

    return act


def seconds_a_step(ask: Callable[[], object], steps: int) -> float:
    """Processor time."""
    began = time.process_time()
    for _ in range(steps):
        ask()
    return (time.process_time() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000, help="of each kind")
    steps = parser.parse_args().steps // ROUNDS
    kinds = {"PolicyClient.act": with_policy_client, "http.client": with_http_client, "requests": with_requests}
    askers, processes = {}, []
    for name, make in kinds.items():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            process = multiprocessing.get_context("fork").Process(target=serve, args=(listener,), daemon=True)
            process.start()
            processes.append(process)
            askers[name] = make(listener.getsockname()[1])
        seconds_a_step(askers[name], steps)  # warm
    medians: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, ask in askers.items():
            medians[name].append(seconds_a_step(ask, steps))
    own = statistics.median(medians["PolicyClient.act"])
    for name, found in medians.items():
        median = statistics.median(found)
        print(f"{name:<17} {median * 1e6:6.0f} us of processor time a step, {median / own:.2f} of PolicyClient's")
    for process in processes:
        process.terminate()


if __name__ == "__main__":
    main()
