"""State tokens: what an answer carried comes back as it was, and nothing else is taken for it."""

from __future__ import annotations

import base64
import json
import string
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from carla_policy.card import ModelCard
from carla_policy.errors import InvalidState
from carla_policy.loading import LoadedPolicy
from carla_policy.prediction import Prediction
from carla_policy.specs import RecurrentSpec
from carla_policy.state import KEY_VARIABLE, StateCodec
from tests.reading import read

HASH, OTHER_HASH = "sha256:" + "1a" * 32, "sha256:" + "2b" * 32
SIZE = 4
ALPHABET = string.ascii_letters + string.digits + "-_"
STATES = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(width=32))
STATE = np.arange(3 * SIZE, dtype=np.float32).reshape(3, SIZE) + 1


@pytest.fixture(autouse=True)
def _no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


@pytest.fixture
def card(synthetic: LoadedPolicy) -> ModelCard:
    return synthetic.policy.card


@pytest.fixture
def codec() -> StateCodec:
    return StateCodec(HASH, SIZE)


def parsed(card: ModelCard, codec: StateCodec | None, *, rows: int = 3, **options: Any) -> Prediction:
    observation = {"speed": 1.0, "steering": 0.0, "sensors": [0.0] * 5}
    return read(json.dumps({"observations": [observation] * rows, **options}).encode(), card, codec)


def finding(card: ModelCard, codec: StateCodec | None, **options: Any) -> tuple[str, str]:
    """Where a request is refused with `InvalidState`, and why."""
    with pytest.raises(InvalidState) as caught:
        parsed(card, codec, **options)
    assert (caught.value.status, caught.value.type, len(caught.value.details)) == (422, "INVALID_STATE", 1)
    detail = caught.value.details[0]
    assert str(caught.value).startswith(detail["loc"])
    return detail["loc"], detail["type"]


def refusal(codec: StateCodec, token: str, rows: int) -> str:
    with pytest.raises(InvalidState) as caught:
        codec.decode(token, rows)
    assert str(caught.value).startswith("state: ")
    return caught.value.details[0]["type"]


@given(state=STATES)
def test_state_comes_back_bit_for_bit_and_can_be_written_to(state: Any) -> None:
    codec = StateCodec(HASH, state.shape[1])
    token = codec.encode(state)
    back = codec.decode(token, len(state))
    assert (back.dtype, back.shape, back.flags.writeable) == (np.float32, state.shape, True)
    assert back.tobytes() == state.tobytes()
    assert StateCodec(HASH, state.shape[1]).encode(np.asfortranarray(state)) == token
    assert set(token) <= {*ALPHABET, "="}


@given(state=STATES, data=st.data())
def test_token_with_any_changed_character_is_refused(state: Any, data: st.DataObject) -> None:
    """Spare bits of base64 and its second alphabet included: a token has one spelling."""
    codec = StateCodec(HASH, state.shape[1])
    token = codec.encode(state)
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from(ALPHABET + "=+/. \n\x00é").filter(lambda character: character != token[place]))
    changed = token[:place] + other + token[place + 1 :]
    assert refusal(codec, changed, len(state)) in {"encoding", "version", "integrity"}


@pytest.mark.parametrize("size", [1, 3])
def test_token_has_one_spelling(size: int) -> None:
    """Its last character has bits that mean nothing."""
    codec = StateCodec(HASH, size)
    token = codec.encode(np.ones((1, size), np.float32))
    place = len(token.rstrip("=")) - 1
    spellings = [token[:place] + character + token[place + 1 :] for character in ALPHABET if character != token[place]]
    same = [other for other in spellings if base64.urlsafe_b64decode(other) == base64.urlsafe_b64decode(token)]
    assert same
    for other in same:
        assert refusal(codec, other, 1) == "integrity"


@given(state=STATES, place=st.integers(min_value=0), bit=st.integers(0, 7))
def test_any_flipped_bit_of_the_content_is_refused(state: Any, place: int, bit: int) -> None:
    codec = StateCodec(HASH, state.shape[1])
    content = bytearray(base64.urlsafe_b64decode(codec.encode(state)))
    content[place % len(content)] ^= 1 << bit
    kind = refusal(codec, base64.urlsafe_b64encode(content).decode(), len(state))
    assert kind == ("version" if place % len(content) < 12 else "integrity")


@given(rows=st.integers(1, 9), asked=st.integers(1, 9), size=st.integers(1, 9))
def test_token_for_other_rows_is_refused_by_its_length(rows: int, asked: int, size: int) -> None:
    codec = StateCodec(HASH, size)
    token = codec.encode(np.ones((rows, size), np.float32))
    if rows == asked:
        assert codec.decode(token, asked).all()
    else:
        assert refusal(codec, token, asked) == "length"


def test_cut_lengthened_and_empty_tokens_are_refused_by_their_length(codec: StateCodec) -> None:
    token = codec.encode(STATE)
    for wrong in (*(token[:end] for end in range(len(token))), token + "A", token + "=", token + token):
        assert refusal(codec, wrong, 3) == "length"


@pytest.mark.parametrize("character", ["é", "\ud800", " ", "\n", "=", "*", "\x00"])
def test_token_of_other_characters_is_refused(codec: StateCodec, character: str) -> None:
    token = codec.encode(STATE)
    assert refusal(codec, character + token[1:], 3) == "encoding"
    assert refusal(codec, token[:30] + character + token[31:], 3) == "encoding"


def test_token_of_another_version_is_refused_as_such(codec: StateCodec) -> None:
    assert refusal(StateCodec(OTHER_HASH, SIZE), codec.encode(STATE), 3) == "version"


def test_rows_of_two_tokens_cannot_be_mixed(codec: StateCodec) -> None:
    one, two = codec.encode(STATE), codec.encode(STATE + 1)
    assert refusal(codec, one[: len(one) // 2] + two[len(one) // 2 :], 3) == "integrity"


def test_secret_keys_the_digest(codec: StateCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, codecs = [codec.encode(STATE)], [codec]
    for secret in ("one", "two"):
        monkeypatch.setenv(KEY_VARIABLE, secret)
        codecs.append(StateCodec(HASH, SIZE))
        tokens.append(codecs[-1].encode(STATE))
        assert StateCodec(HASH, SIZE).encode(STATE) == tokens[-1]
    contents = [base64.urlsafe_b64decode(token) for token in tokens]
    assert len({content[:-16] for content in contents}) == 1
    assert len({content[-16:] for content in contents}) == 3
    for number, reader in enumerate(codecs):
        for other, token in enumerate(tokens):
            if number == other:
                assert reader.decode(token, 3).tobytes() == STATE.tobytes()
            else:
                assert refusal(reader, token, 3) == "integrity"


def test_recurrent_policy_needs_a_state_or_the_start_of_an_episode(card: ModelCard, codec: StateCodec) -> None:
    assert finding(card, codec) == ("state", "missing")
    assert finding(card, codec, episode_start=False) == ("state", "missing")
    assert finding(card, codec, episode_start=[True, False, True]) == ("state", "missing")
    for starts in (True, [True, True, True]):
        state = parsed(card, codec, episode_start=starts).state
        assert state is not None
        assert (state.dtype, state.tolist()) == (np.float32, [[0.0] * SIZE] * 3)


@pytest.mark.parametrize("starts", [None, True, False, [True, False, True], [False, False, True], [False] * 3])
def test_state_is_forgotten_where_an_episode_starts_and_only_there(
    card: ModelCard, codec: StateCodec, starts: bool | list[bool] | None
) -> None:
    options = {} if starts is None else {"episode_start": starts}
    state = parsed(card, codec, state=codec.encode(STATE), **options).state
    assert state is not None
    fresh = np.broadcast_to(np.array(starts or False), 3)
    assert state.tolist() == np.where(fresh[:, None], 0, STATE).tolist()


@pytest.mark.parametrize("starts", [[], [True], [True] * 4])
def test_starts_must_be_as_many_as_the_observations(card: ModelCard, codec: StateCodec, starts: list[bool]) -> None:
    assert finding(card, codec, episode_start=starts) == ("episode_start", "length")
    assert finding(card, codec, episode_start=starts, state=codec.encode(STATE)) == ("episode_start", "length")


@pytest.mark.parametrize("wrong", [1, None, [], {}])
def test_state_that_is_no_string_is_refused(card: ModelCard, codec: StateCodec, wrong: Any) -> None:
    assert finding(card, codec, state=wrong) == ("state", "string_type")


def test_where_every_episode_starts_an_old_token_does_not_matter(card: ModelCard, codec: StateCodec) -> None:
    token = codec.encode(STATE)
    for stale in (token[:-1], "A" + token[1:], ""):
        state = parsed(card, codec, state=stale, episode_start=True).state
        assert state is not None
        assert not state.any()


def test_policy_that_keeps_no_state_refuses_one(card: ModelCard, codec: StateCodec) -> None:
    assert finding(card, None, state=codec.encode(STATE)) == ("state", "unexpected")
    assert finding(card, None, state="") == ("state", "unexpected")
    assert parsed(card, None).state is None
    assert parsed(card, None, episode_start=True).state is None


def test_largest_request_with_a_state_is_not_too_long(card: ModelCard) -> None:
    two = card.inference.model_copy(update={"max_observations": 2})
    wide = card.model_copy(update={"inference": two, "recurrent": RecurrentSpec(state_size=1_000)})
    token = StateCodec(HASH, 1_000).encode(np.ones((2, 1_000), np.float32))
    state = parsed(wide, StateCodec(HASH, 1_000), rows=2, state=token).state
    assert state is not None
    assert state.shape == (2, 1_000)
