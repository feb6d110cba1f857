"""The reader of answers: the same whatever the pieces are in which they arrive."""

import unittest

from carla_policy_client.http11 import MAX_HEAD_BYTES, ResponseReader
from carla_policy_client.misses import Miss

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Twice: a\r\nx-twice: b\r\n"
PLAIN = HEAD + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nTrailer: 1\r\n\r\n"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + PLAIN


def read(data, size=65536, limit=100):
    reader = ResponseReader(limit)
    for start in range(0, len(data), size):
        done = reader.feed(data[start : start + size])
        if done != (start + size >= len(data)):
            raise AssertionError(f"whole after {start + size} of {len(data)} bytes")
    return reader.response


class AnAnswer(unittest.TestCase):
    def test_is_read_in_pieces_of_any_size(self):
        for data in (PLAIN, CHUNKED, INTERIM):
            for size in (1, 2, 3, 7, 64, 65536):
                with self.subTest(data=data[:30], size=size):
                    found = read(data, size)
                    self.assertEqual((found.status, found.body), (200, b"hello"))
                    self.assertEqual(found.headers["x-twice"], "a, b")
                    self.assertTrue(found.keep_alive)

    def test_says_whether_the_connection_stays(self):
        for version, connection, stays in [
            (b"1.1", b"", True),
            (b"1.1", b"connection: close\r\n", False),
            (b"1.0", b"", False),
            (b"1.0", b"Connection: Keep-Alive\r\n", True),
        ]:
            data = b"HTTP/" + version + b" 200 \r\n" + connection + b"content-length: 0\r\n\r\n"
            self.assertEqual(read(data).keep_alive, stays)

    def test_that_is_malformed_is_refused_in_pieces_of_any_size(self):
        for data in (
            b"HTTP/1.1 2000 OK\r\n\r\n",
            b"HTTP/1.1  200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nspace : x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nx: a\nb\r\n\r\n",
            HEAD + b"content-length: 1 1\r\n\r\n1",
            HEAD + b"content-length: +1\r\n\r\n1",
            HEAD + b"content-length: 101\r\n\r\n",
            HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n",
            HEAD + b"transfer-encoding: chunked\r\n\r\n-1\r\n",
            HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
            HEAD + b"transfer-encoding: chunked\r\n\r\n65\r\n",
            HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"0" * 300,
            HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: y\r\n" * MAX_HEAD_BYTES,
            b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD_BYTES,
            PLAIN + b"!",
        ):
            for size in (1, 65536):
                with self.subTest(data=data[:60], size=size), self.assertRaises(Miss) as caught:
                    reader = ResponseReader(100)
                    for start in range(0, len(data), size):
                        if reader.response is not None:
                            raise Miss("invalid", "what comes behind an answer is found before the next request")
                        reader.feed(data[start : start + size])
                self.assertEqual(caught.exception.reason, "invalid")


if __name__ == "__main__":
    unittest.main()
