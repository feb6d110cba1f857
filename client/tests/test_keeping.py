"""The one connection: kept, noticed when it is gone, made anew in the background, and never shared."""

import json
import os
import sys
import threading
import time
import unittest
import warnings
from unittest import mock

from carla_policy_client import Action, PolicyClient
from carla_policy_client.dialling import Dialler
from tests.clients import IMPATIENT_S, KINDS, PATIENT_S, SLACK_S, connected_step
from tests.fake_server import FakeServer, Held, policy, response, until, well

ROW = [10.0, 0.0]


class AConnection(unittest.TestCase):
    def test_is_kept_for_all_steps(self):
        for kind in KINDS:
            for host in ("127.0.0.1", "::1"):
                with self.subTest(host=host), FakeServer(host=host) as server:
                    with kind(server.url + "/fleet/", "v1.2.3", deadline_s=PATIENT_S) as client:
                        self.assertEqual([client.act(ROW).source for _ in range(5)], ["policy"] * 5)
                        self.assertEqual((server.connections, client.statistics.connects), (1, 1))
                    host = server.url.split("//")[1]
                    for request in server.requests:
                        self.assertEqual(request.path, "/fleet/predictions/carla_policy/v1.2.3")
                        self.assertEqual(request.headers["host"], host)

    def test_that_was_ended_while_idle_costs_no_step(self):
        for kind in KINDS:
            with FakeServer() as server, kind(server.url, deadline_s=PATIENT_S) as client:
                for count in (1, 2, 3):
                    self.assertEqual(client.act(ROW).source, "policy")
                    self.assertEqual(server.connections, count)
                    server.hang_up()
                self.assertEqual(client.act(ROW).source, "policy")

    def test_that_ends_under_a_request_is_replaced_and_the_request_sent_again(self):
        def end_the_second(sock, request):
            return well(sock, request) if len(server.requests) != 2 else False

        for kind in KINDS:
            with FakeServer(end_the_second) as server, kind(server.url, deadline_s=PATIENT_S) as client:
                self.assertEqual([client.act(ROW).source for _ in range(3)], ["policy"] * 3)
                self.assertEqual((server.connections, len(server.requests), client.statistics.retries), (2, 4, 1))

    def test_on_which_something_came_that_nobody_asked_for_is_not_used_again(self):
        def answer_twice(sock, request):
            well(sock, request)
            asked.wait(PATIENT_S)
            sock.sendall(response(request, policy(request)))
            sent.set()

        for kind in KINDS:
            asked, sent = threading.Event(), threading.Event()
            with FakeServer(answer_twice) as server, kind(server.url, deadline_s=PATIENT_S) as client:
                client.act(ROW)
                server.behave = well
                asked.set()
                sent.wait(PATIENT_S)
                self.assertEqual(client.act([20.0, 0.0]).throttle, 0.2)
                self.assertEqual(server.connections, 2)

    def test_is_not_kept_where_the_server_says_so(self):
        def once(sock, request):
            sock.sendall(response(request, policy(request), connection="close"))
            return False

        with FakeServer(once) as server, PolicyClient(server.url, deadline_s=PATIENT_S) as client:
            self.assertEqual([client.act(ROW).source for _ in range(3)], ["policy"] * 3)
            self.assertGreaterEqual(server.connections, 3)

    @unittest.skipUnless(sys.platform == "linux", "only Linux acknowledges at once when asked to")
    def test_does_not_wait_for_acknowledgements(self):
        def in_two_pieces(sock, request):
            data = response(request, policy(request))
            head = data.index(b"\r\n\r\n") + 4
            sock.sendall(data[:head])
            sock.sendall(data[head:])

        for kind in KINDS:
            with FakeServer(in_two_pieces) as server, kind(server.url, deadline_s=PATIENT_S) as client:
                self.assertLess(sorted(client.act(ROW).latency_s for _ in range(40))[5], 0.03)


class AServerThatIsAway(unittest.TestCase):
    def test_costs_no_more_than_the_deadline_and_is_found_again(self):
        for kind in KINDS:
            server = FakeServer()
            server.__exit__()
            with kind(server.url, deadline_s=IMPATIENT_S, failures_to_open=1000) as client:
                taken = connected_step(client, ROW)
                self.assertEqual(taken.reason, "disconnected")
                self.assertRegex(taken.message.lower(), "refused|connect call failed")
                self.assertLess(taken.latency_s, IMPATIENT_S + SLACK_S)
            with kind(server.url, deadline_s=IMPATIENT_S, failures_to_open=3) as client:
                reasons = [client.act(ROW).reason for _ in range(5)]
                self.assertEqual(reasons, ["disconnected"] * 3 + ["circuit_open"] * 2)
                with FakeServer(port=server.port) as again:
                    end = time.monotonic() + PATIENT_S
                    while client.act(ROW).source != "policy":
                        self.assertLess(time.monotonic(), end)
                        time.sleep(0.01)
                    self.assertEqual(client.statistics.circuit, "closed")
                    self.assertGreater(len(again.requests), 1)

    def test_whose_name_is_not_resolved_costs_no_more_than_the_deadline(self):
        resolved = threading.Event()
        own = Dialler.resolve

        def resolve(dialler):
            resolved.wait(3 * PATIENT_S)
            return own(dialler)

        for kind in KINDS:
            resolved.clear()
            with FakeServer() as server, mock.patch.object(Dialler, "resolve", resolve):
                with kind(server.url, deadline_s=IMPATIENT_S, failures_to_open=1000) as client:
                    taken = client.act(ROW)
                    self.assertEqual((taken.reason, taken.message), ("disconnected", "no connection yet"))
                    self.assertLess(taken.latency_s, IMPATIENT_S + SLACK_S)
                    resolved.set()
                    end = time.monotonic() + PATIENT_S
                    while client.act(ROW).source != "policy":
                        self.assertLess(time.monotonic(), end)
                        time.sleep(0.01)
                    resolved.clear()  # from here on the name server is away, and is not needed
                    server.hang_up()
                    while client.act(ROW).source != "policy":
                        self.assertLess(time.monotonic(), end)
                    resolved.set()

    def test_whose_name_no_resolver_takes_is_a_fallback(self):
        for kind in KINDS:
            with kind("http://{}.example".format("a" * 70), deadline_s=IMPATIENT_S) as client:
                self.assertEqual(client.act(ROW).reason, "disconnected")


class TwoThreads(unittest.TestCase):
    def test_take_turns_on_the_one_connection(self):
        with FakeServer() as server, PolicyClient(server.url, deadline_s=PATIENT_S) as client:
            wrong = []

            def drive(speed):
                for _ in range(50):
                    taken = client.act([speed, 0.0])
                    if taken.source != "policy" or taken.throttle != speed / 100:
                        wrong.append(taken)

            threads = [threading.Thread(target=drive, args=(speed,)) for speed in (10.0, 20.0, 30.0)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual((wrong, server.connections), ([], 1))
            self.assertEqual(client.statistics.by_source["policy"], 150)

    def test_one_without_a_turn_within_its_deadline_falls_back(self):
        with Held() as server, PolicyClient(server.url, deadline_s=PATIENT_S) as client:
            taken = []
            first = threading.Thread(target=lambda: taken.append(client.act(ROW)))
            first.start()
            until(lambda: server.requests)
            with mock.patch.object(client._driver, "deadline_s", 0.05):
                self.assertEqual(client.act(ROW).reason, "busy")
            server.release.set()
            first.join()
            self.assertEqual((taken[0].source, client.statistics.circuit), ("policy", "closed"))

    def test_override_takes_over_a_step_that_is_under_way(self):
        with Held() as server, PolicyClient(server.url, deadline_s=PATIENT_S) as client:
            taken = []
            driving = threading.Thread(target=lambda: taken.append(client.act(ROW)))
            driving.start()
            until(lambda: server.requests)
            client.set_override(Action(throttle=0.3))
            server.release.set()
            driving.join()
            self.assertEqual((taken[0].source, taken[0].throttle), ("override", 0.3))


@unittest.skipUnless(hasattr(os, "fork"), "no fork here")
class AForkedProcess(unittest.TestCase):
    def test_has_a_connection_of_its_own(self):
        with FakeServer() as server, PolicyClient(server.url, deadline_s=PATIENT_S) as client:
            client.act(ROW)
            reader, writer = os.pipe()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads
                child = os.fork()
            if not child:
                try:
                    os.write(writer, json.dumps([client.act([20.0, 0.0]).throttle for _ in range(3)]).encode())
                finally:
                    os._exit(0)
            os.close(writer)
            mine = [client.act(ROW).throttle for _ in range(3)]
            self.assertEqual(json.loads(os.read(reader, 1000).decode()), [0.2] * 3)
            os.close(reader)
            os.waitpid(child, 0)
            self.assertEqual(mine, [0.1] * 3)
            self.assertEqual((client.act(ROW).source, server.connections), ("policy", 2))


class AForgottenClient(unittest.TestCase):
    def test_ends_its_threads(self):
        with FakeServer() as server:
            before = set(threading.enumerate())
            client = PolicyClient(server.url, deadline_s=PATIENT_S)
            client.act(ROW)
            self.assertTrue(client.end_episode(1.0, 1))
            own = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("carla-policy")]
            self.assertEqual(len(own), 2)
            del client
            until(lambda: not any(thread.is_alive() for thread in own))


if __name__ == "__main__":
    unittest.main()
