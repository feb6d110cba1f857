"""The state of a recurrent policy travels with the client: the server keeps none.

An answer carries its rows' state as an opaque token, and the next request brings it back. A token is bound to the
exact version (by its card's digest) and to its number of rows, has a known length, and carries a keyed digest: a
token that was cut, changed, mixed up or made for another version is refused by name. Without a secret in
`CARLA_POLICY_STATE_KEY` the digest finds accidents; with one, the same in all workers, also forgeries.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os

import numpy as np

from carla_policy.errors import InvalidState
from carla_policy.golden import FloatArray

KEY_VARIABLE = "CARLA_POLICY_STATE_KEY"
_FORMAT = b"cps1"
_VERSION_BYTES = 8
_DIGEST_BYTES = 16
_HEADER_BYTES = len(_FORMAT) + _VERSION_BYTES


class StateCodec:
    """Encodes and checks the state tokens of one version; each row has `state_size` float32 numbers."""

    def __init__(self, card_hash: str, state_size: int) -> None:
        self.state_size = state_size
        self._header = _FORMAT + bytes.fromhex(card_hash.removeprefix("sha256:"))[:_VERSION_BYTES]
        self._key = hashlib.blake2b(os.environ.get(KEY_VARIABLE, "").encode()).digest()

    def encode(self, state: FloatArray) -> str:
        """The token of `state` `[rows, state_size]`."""
        signed = self._header + np.ascontiguousarray(state, "<f4").tobytes()
        return base64.urlsafe_b64encode(signed + self._digest(signed)).decode()

    def decode(self, token: str, rows: int) -> FloatArray:
        """The state `[rows, state_size]` in `token`; `InvalidState` says why it is none."""
        signed_bytes = _HEADER_BYTES + 4 * rows * self.state_size
        expected = 4 * -(-(signed_bytes + _DIGEST_BYTES) // 3)
        if len(token) != expected:
            raise InvalidState.at(
                "state",
                f"expected a token of {expected} characters for {rows} observations of this version, got {len(token)}; "
                "send back the state of the last answer, whose observations were as many and in the same order",
                "length",
            )
        try:
            data = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error):
            message = "not a token as an answer carries it; send it back as it came"
            raise InvalidState.at("state", message, "encoding") from None
        if base64.urlsafe_b64encode(data).decode() != token:
            raise InvalidState.at("state", "its content has changed; send it back as it came", "integrity")
        if data[:_HEADER_BYTES] != self._header:
            raise InvalidState.at(
                "state",
                "made by another version; a state goes back to the version that made it, and an episode that changes "
                "its version starts anew, with episode_start: true",
                "version",
            )
        signed, digest = data[:signed_bytes], data[signed_bytes:]
        if not hmac.compare_digest(digest, self._digest(signed)):
            raise InvalidState.at("state", "its content has changed; send it back as it came", "integrity")
        return np.frombuffer(signed[_HEADER_BYTES:], "<f4").astype(np.float32).reshape(rows, self.state_size)

    def _digest(self, signed: bytes) -> bytes:
        return hashlib.blake2b(signed, digest_size=_DIGEST_BYTES, key=self._key).digest()
