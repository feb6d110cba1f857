"""A server that does as it is told: well, late, wrong, or not at all.

Its policy throttles with a hundredth of the speed, so that an answer shows which observation it belongs to.
"""

import contextlib
import json
import socket
import threading
import time

VERSION = "v1.2.3"


class Request:
    def __init__(self, line, headers, body):
        self.path = line.split(" ")[1]
        self.headers = headers
        self.content = json.loads(body)

    @property
    def rows(self):
        return len(self.content["observations"])


def policy(request, **changes):
    """The answer of a policy as a dictionary, but for `changes`; a value of None leaves a field out."""
    actions = [
        {"throttle": row["speed"] / 100, "brake": 0.0, "steer": row["steering"]}
        for row in request.content["observations"]
    ]
    content = {
        "actions": actions,
        "version": VERSION,
        "timingMs": 0.5,
        "deterministic": request.content["deterministic"],
    }
    if not content["deterministic"]:
        content["seed"] = request.content.get("seed", 7)
    content.update(changes)
    return {name: value for name, value in content.items() if value is not None}


def action(**changes):
    """An action of the policy, but for `changes`."""
    return {"throttle": 0.5, "brake": 0.0, "steer": 0.0, **changes}


def response(request, content, status="200 OK", **headers):
    """The bytes of an answer; `content` is bytes, or becomes JSON. A header of None is left out."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    fields = {
        "Content-Type": "application/json",
        "x-policy-version": VERSION,
        "x-client-request-id": request.headers.get("x-request-id"),
        "Content-Length": str(len(body)),
    }
    fields.update({name.replace("_", "-"): value for name, value in headers.items()})
    lines = ["{}: {}".format(*item) for item in fields.items() if item[1] is not None]
    return (f"HTTP/1.1 {status}\r\n").encode() + "\r\n".join([*lines, "", ""]).encode() + body


def error(kind, message="because", **headers):
    """A behaviour: an error such as `422 SHAPE`."""
    status, name = kind.split(" ", 1)

    def behave(sock, request):
        content = {"code": int(status), "type": name, "message": message, "details": [], "requestId": "1"}
        sock.sendall(response(request, content, f"{status} Error", connection="close", **headers))
        return False

    return behave


def well(sock, request):
    """A behaviour: the policy's answer."""
    if request.path.endswith("/episodes"):
        sock.sendall(response(request, {"status": "recorded"}))
    else:
        sock.sendall(response(request, policy(request)))


def saying(data):
    """A behaviour: these bytes, then nothing more."""

    def behave(sock, _):
        sock.sendall(data)

    return behave


def changed(**changes):
    """A behaviour: the policy's answer with other fields."""
    return lambda sock, request: sock.sendall(response(request, policy(request, **changes)))


def headed(status="200 OK", **headers):
    """A behaviour: the policy's answer with another head."""
    return lambda sock, request: sock.sendall(response(request, policy(request), status, **headers))


def silent(_, __):
    """A behaviour: accept and say nothing."""


class FakeServer:
    """`behave(sock, request)` answers each request; a connection ends when it returns False."""

    def __init__(self, behave=well, host="127.0.0.1", context=None, port=0):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._host = host
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((host, port))
        self._listener.listen(50)
        self._context = context
        self._sockets = []
        self.behave = behave
        self.port = self._listener.getsockname()[1]
        self.requests = []
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self):
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._context else 'http'}://{host}:{self.port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    def hang_up(self):
        """End every connection."""
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._sockets.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, plain):
        try:
            sock = plain if self._context is None else self._context.wrap_socket(plain, server_side=True)
            stream = sock.makefile("rb")
            while True:
                request = _read(stream)
                if request is None:
                    break
                self.requests.append(request)
                if self.behave(sock, request) is False:
                    break
            sock.close()
            stream.close()
        except (OSError, ValueError):
            pass


class Held(FakeServer):
    """Answers once `release` is set."""

    def __init__(self):
        self.release = threading.Event()
        super().__init__(self._behave)

    def _behave(self, sock, request):
        self.release.wait(60.0)
        well(sock, request)


def _read(stream):
    line = stream.readline().decode().strip()
    if not line:
        return None
    headers = {}
    while True:
        field = stream.readline().decode().strip()
        if not field:
            break
        name, value = field.split(": ", 1)
        headers[name.lower()] = value
    return Request(line, headers, stream.read(int(headers["content-length"])))


def until(condition, patience_s=60.0):
    """Wait for `condition` to be true."""
    end = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"it did not come to that in {patience_s:g} s")
        time.sleep(0.002)
