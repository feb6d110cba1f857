"""Whatever a server does, a step has an action: why it is a fallback, and that the next step is none."""

import json
import socket
import struct
import time
import unittest
from unittest import mock

from carla_policy_client import Action
from tests.clients import IMPATIENT_S, KINDS, PATIENT_S, SLACK_S, connected_step
from tests.fake_server import (
    FakeServer,
    action,
    changed,
    error,
    headed,
    policy,
    response,
    saying,
    silent,
    well,
)

MANY = 10 * 2**20


def drip(sock, request):
    for byte in response(request, policy(request)):
        sock.sendall(bytes([byte]))
        time.sleep(0.05)


def drip_headers(sock, _):
    sock.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(1000):
        sock.sendall(b"x-%d: y\r\n" % number)
        time.sleep(0.05)


def endless_chunks(sock, _):
    sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        sock.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")


def endless_interim(sock, _):
    while True:
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def half(sock, request):
    data = response(request, policy(request))
    sock.sendall(data[: len(data) - 20])


def half_and_end(sock, request):
    half(sock, request)
    return False


def reset(sock, _):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def longer_than_it_says(sock, request):
    sock.sendall(response(request, policy(request)) + b"HTTP/1.1 200 OK\r\n")


def shorter_than_it_is(sock, request):
    sock.sendall(response(request, policy(request), Content_Length="30"))


def doubled_key(sock, request):
    body = json.dumps(policy(request)).replace('"brake": 0.0', '"brake": 0.0, "brake": 1.0').encode()
    sock.sendall(response(request, body))


def beyond_numbers(sock, request):
    body = json.dumps(policy(request)).replace('"throttle": 0.1', '"throttle": 1e999').encode()
    sock.sendall(response(request, body))


def of(*actions):
    return changed(actions=list(actions))


def body(data):
    return lambda sock, request: sock.sendall(response(request, data))


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
FAULTS = [
    # name, behaviour, reason, what the message says
    ("says nothing", silent, "late", "before the deadline"),
    ("drips an answer", drip, "late", "before the deadline"),
    ("drips headers", drip_headers, "late", "before the deadline"),
    ("stops in the middle", half, "late", "before the deadline"),
    ("is late and says so", error("504 DEADLINE_EXCEEDED"), "late", "504 DEADLINE_EXCEEDED: because"),
    ("hangs up", lambda *_: False, "disconnected", "ended the connection"),
    ("hangs up in the middle", half_and_end, "disconnected", "in the middle"),
    ("resets", reset, "disconnected", "reset"),
    ("400", error("400 InvalidKeyException"), "refused", "400 InvalidKeyException: because"),
    ("404", error("404 ModelNotFoundException"), "refused", "404 ModelNotFoundException: because"),
    ("422", error("422 SHAPE", "sensors: expected 28"), "refused", "422 SHAPE: sensors: expected 28"),
    ("408", error("408 PROXY_REQUEST_TIMEOUT"), "unavailable", "408"),
    ("429", error("429 SLOW_DOWN"), "unavailable", "429"),
    ("500", error("500 INTERNAL"), "unavailable", "500 INTERNAL: because"),
    ("503", error("503 DRAINING"), "unavailable", "503 DRAINING: because"),
    ("507", error("507 OUT_OF_MEMORY", retry_after="0"), "unavailable", "507 OUT_OF_MEMORY"),
    ("503 of HTML", headed("503 No", Content_Type="text/html"), "unavailable", "503"),
    ("redirects", headed("302 Found", location="/"), "invalid", "302"),
    ("204", saying(b"HTTP/1.1 204 No Content\r\n\r\n"), "invalid", "204"),
    ("garbage", saying(b"\x00\xff" * 5000), "invalid", "no HTTP"),
    ("TLS", saying(b"\x16\x03\x01\x02\x00\x01\x00"), "invalid", "no HTTP"),
    ("HTTP/2", saying(b"HTTP/2 200\r\n\r\n"), "invalid", "no HTTP"),
    ("ten megabytes of a header", saying(b"HTTP/1.1 200 OK\r\nx: " + b"y" * MANY), "invalid", "bytes of headers"),
    ("a header folded", saying(HEAD + b" more\r\ncontent-length: 2\r\n\r\n{}"), "invalid", "a header"),
    ("switches protocols", saying(b"HTTP/1.1 101 X\r\n\r\n"), "invalid", "switches"),
    ("interim answers without end", endless_interim, "invalid", "bytes of headers"),
    ("chunks without end", endless_chunks, "invalid", "an answer of more than"),
    ("a body that is too large", headed(Content_Length=str(MANY)), "invalid", "an answer of 10485760 bytes"),
    ("no length", saying(HEAD + b"\r\n{}"), "invalid", "content-length None"),
    ("a negative length", headed(Content_Length="-1"), "invalid", "content-length '-1'"),
    ("two lengths", saying(HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}"), "invalid", "'2, 3'"),
    ("length and chunks", headed(transfer_encoding="chunked"), "invalid", "transfer-encoding"),
    ("too short a length", shorter_than_it_is, "invalid", "behind the end"),
    ("more than an answer", longer_than_it_says, "invalid", "behind the end"),
    ("HTML", headed(Content_Type="text/html"), "invalid", "text/html"),
    ("compressed", headed(content_encoding="gzip"), "invalid", "plain application/json"),
    ("no JSON", body(b"throttle=1"), "invalid", "no JSON"),
    ("no UTF-8", body(b'{"version": "\xff"}'), "invalid", "no JSON"),
    ("half a JSON", body(b'{"actions": [{"throttle": 0.5'), "invalid", "no JSON"),
    ("a list", body(b"[]"), "invalid", "no JSON object"),
    ("too deep a JSON", body(b"[" * 60000), "invalid", "no JSON"),
    ("an integer of many digits", body(b'{"version": %s}' % (b"9" * 50000)), "invalid", "50000 digits"),
    ("a key twice", doubled_key, "invalid", "twice"),
    ("no actions", changed(actions=None), "invalid", "actions"),
    ("actions that are none", changed(actions={"throttle": 1.0}), "invalid", "actions: expected 1"),
    ("an action too few", of(), "invalid", "expected 1, got 0"),
    ("an action too many", of(action(), action()), "invalid", "expected 1, got 2"),
    ("an action that is none", of(0.5), "invalid", "expected objects"),
    ("a control missing", of({"throttle": 0.5, "brake": 0.0}), "invalid", "'steer' is missing"),
    ("a control of text", of(action(steer="0.1")), "invalid", "steer: expected a number"),
    ("a control of truth", of(action(brake=True)), "invalid", "brake: expected a number"),
    ("a control of nothing", of(action(throttle=None)), "invalid", "throttle: expected a number"),
    ("NaN", of(action(steer=float("nan"))), "invalid", "NaN is no number"),
    ("infinity", of(action(throttle=float("inf"))), "invalid", "Infinity is no number"),
    ("a number beyond numbers", beyond_numbers, "invalid", "throttle: expected a finite number in [0, 1], got inf"),
    ("throttle a little too much", of(action(throttle=1.0000001)), "invalid", "throttle: expected a finite number"),
    ("steer too far to the left", of(action(steer=-1.5)), "invalid", "steer: expected a finite number in [-1, 1]"),
    ("a brake below nothing", of(action(brake=-0.1)), "invalid", "brake: expected a finite number in [0, 1]"),
    ("no version", changed(version=None), "invalid", "'version' is missing"),
    ("another version than its head", headed(x_policy_version="v9.9.9"), "invalid", "v9.9.9"),
    ("a sample", changed(deterministic=False), "invalid", "deterministic: expected True"),
    ("a state that is none", changed(state=5), "invalid", "state"),
    ("interventions that are none", changed(interventions=[{"observation": 7, "kind": "ood"}]), "invalid", "interv"),
    ("interventions of text", changed(interventions="ood"), "invalid", "not an answer"),
    ("the answer to another request", headed(x_client_request_id="car:1:1"), "invalid", "of another request"),
    ("whose answer nobody knows", headed(x_client_request_id=None), "invalid", "no header x-client-request-id"),
]


class EveryFault(unittest.TestCase):
    def test_is_a_fallback_with_a_reason_in_time_and_soon_after_the_policy_drives_again(self):
        for kind in KINDS:
            for name, behave, reason, said in FAULTS:
                with self.subTest(fault=name, client=kind.__name__), FakeServer(behave) as server:
                    self._drive(kind, server, reason, said)

    def _drive(self, kind, server, reason, said):
        deadline_s = IMPATIENT_S if reason == "late" else PATIENT_S
        safe = Action(brake=0.75, steer=0.25)
        with kind(server.url, deadline_s=deadline_s, fallback=safe) as client:
            taken = connected_step(client, [10.0, 0.0, 1.0])
            self.assertLess(taken.latency_s, IMPATIENT_S + SLACK_S)
            self.assertEqual((taken.source, taken.reason), ("fallback", reason), taken.message)
            self.assertIn(said.lower(), taken.message.lower())
            self.assertEqual(taken.controls(), safe.controls())
            self.assertGreaterEqual(client.statistics.by_reason[reason], 1)
            server.behave = well
            drive_until_well(self, client)


class ALateAnswer(unittest.TestCase):
    def test_is_never_delivered_to_a_later_step(self):
        for kind in KINDS:
            with self.subTest(client=kind.__name__), FakeServer() as server:

                def answer_late(sock, request, server=server):
                    server.behave = well
                    vehicle, run, number = request.headers["x-request-id"].split(":")
                    if sock.recv(1, socket.MSG_PEEK):  # a next request, which is answered with what is left of this
                        following = f"{vehicle}:{run}:{int(number) + 1}"
                        sock.sendall(response(request, policy(request), x_client_request_id=following))
                    return False

                server.behave = answer_late
                with kind(server.url, deadline_s=IMPATIENT_S) as client:
                    self.assertEqual(connected_step(client, [10.0, 0.0]).reason, "late")
                    for _ in range(3):
                        drive_until_well(self, client)


class ABugOfTheClient(unittest.TestCase):
    def test_is_a_fallback_too(self):
        for kind in KINDS:
            broken = mock.patch("carla_policy_client.answers.read", side_effect=ZeroDivisionError("of sensors"))
            with FakeServer() as server, kind(server.url, deadline_s=PATIENT_S) as client:
                with broken:
                    taken = client.act([10.0, 0.0])
                self.assertEqual((taken.reason, taken.message), ("internal", "ZeroDivisionError: of sensors"))
                self.assertEqual(taken.brake, 1.0)
                drive_until_well(self, client)


def drive_until_well(test, client):
    """Until the policy answers, and then with what belongs to that very observation."""
    end = time.monotonic() + PATIENT_S
    number = 0
    while time.monotonic() < end:
        number = number % 100 + 1
        taken = client.act([number / 2, 0.0])
        if taken.source == "policy":
            return test.assertEqual(taken.throttle, number / 2 / 100)
        time.sleep(0.005)
    raise AssertionError(f"the policy does not drive again: {taken.message}")


if __name__ == "__main__":
    unittest.main()
