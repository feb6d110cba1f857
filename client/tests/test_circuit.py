"""The circuit breaker: a failing server is probed in the background, and no step asks it meanwhile."""

import time
import unittest

from tests.clients import IMPATIENT_S, KINDS, PATIENT_S
from tests.fake_server import FakeServer, error, silent, well

ROW = [10.0, 0.0]


def rest(client, seconds):
    getattr(client, "rest", time.sleep)(seconds)


class ACircuit(unittest.TestCase):
    def test_opens_after_so_many_failures_in_a_row_and_closes_when_a_probe_succeeds(self):
        for kind in KINDS:
            with FakeServer(error("500 INTERNAL")) as server:
                with kind(server.url, deadline_s=PATIENT_S, failures_to_open=3) as client:
                    for _ in range(2):
                        client.act(ROW)
                    server.behave = well
                    client.act(ROW)
                    self.assertEqual(client.statistics.circuit, "closed")
                    server.behave = error("500 INTERNAL")
                    reasons = [client.act(ROW).reason for _ in range(4)]
                    self.assertEqual(reasons, ["unavailable"] * 3 + ["circuit_open"])
                    self.assertEqual((client.statistics.circuit, client.statistics.circuit_opened), ("open", 1))
                    own = {request.headers["x-request-id"] for request in server.requests}
                    end = time.monotonic() + PATIENT_S
                    while len(server.requests) < len(own) + 2 and time.monotonic() < end:
                        rest(client, 0.01)
                    self.assertEqual(client.act(ROW).reason, "circuit_open")
                    probes = [r for r in server.requests if r.headers["x-request-id"] not in own]
                    self.assertGreaterEqual(len(probes), 2)
                    self.assertEqual(probes[0].content, server.requests[-1].content)
                    server.behave = well
                    while client.statistics.circuit == "open" and time.monotonic() < end:
                        rest(client, 0.01)
                    self.assertEqual(client.act(ROW).source, "policy")

    def test_stays_open_while_answers_are_late(self):
        for kind in KINDS:
            with FakeServer(silent) as server:
                with kind(server.url, deadline_s=IMPATIENT_S, failures_to_open=1) as client:
                    end = time.monotonic() + PATIENT_S
                    while len(server.requests) < 3 and time.monotonic() < end:
                        client.act(ROW)
                        rest(client, 0.01)
                    self.assertEqual(client.act(ROW).reason, "circuit_open")
                    self.assertLessEqual(sum(client.statistics.by_reason[name] for name in ("late", "disconnected")), 1)
                    self.assertGreaterEqual(len(server.requests), 3)

    def test_is_not_opened_by_what_the_vehicle_asks(self):
        for kind in KINDS:
            with FakeServer(error("422 SHAPE")) as server:
                with kind(server.url, deadline_s=PATIENT_S, failures_to_open=2) as client:
                    self.assertEqual([client.act(ROW).reason for _ in range(5)], ["refused"] * 5)
                    self.assertEqual(client.statistics.circuit_opened, 0)
                    self.assertEqual(client.statistics.refusals, {"422 SHAPE": 5})

    def test_is_not_probed_before_the_server_wants_it(self):
        for kind in KINDS:
            with FakeServer(error("503 DRAINING", retry_after="30")) as server:
                with kind(server.url, deadline_s=PATIENT_S, failures_to_open=1) as client:
                    client.act(ROW)
                    rest(client, 0.2)
                    self.assertEqual(client.act(ROW).reason, "circuit_open")
                    self.assertEqual(len(server.requests), 1)


if __name__ == "__main__":
    unittest.main()
