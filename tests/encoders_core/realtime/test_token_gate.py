"""The gate of a model that knows its rows, alone and in front of a small ViT."""

from typing import Any

import numpy as np
import pytest

from encoders_core.config import GateConfig
from encoders_core.realtime.frame_gate import Decision
from encoders_core.realtime.realtime_encoder import RealtimeVideoEncoder
from encoders_core.realtime.session import Session
from encoders_core.realtime.token_gate import HOLD_LOAD, Rows, TokenGate
from tests.encoders_core.realtime.tiny_vits import Frame, plain, redrawn, scene, tiny_encoder, walk

S = 1_000_000_000
QUIET = Rows(0, 0.0, exact=False, settled=True)
BUSY = Rows(30, 2 * HOLD_LOAD, exact=False, settled=True)


def begun(frame: Frame) -> TokenGate:
    gate = TokenGate(GateConfig(), 100.0)
    decision = gate.decide(frame, 0, unasked)
    assert decision.reason == "cold"
    gate.begin(frame, 0, decision)
    return gate


def unasked() -> Rows:
    raise AssertionError("the picture alone decides")


def decide(gate: TokenGate, frame: Frame, rows: Rows, at_s: float = 1, **more: Any) -> Decision:
    return gate.decide(frame, int(at_s * S), lambda: rows, **more)


def test_an_identical_frame_is_held_without_asking_the_model() -> None:
    gate = begun(scene(0))
    assert gate.decide(scene(0), S, unasked).reason == "held"


def test_another_picture_is_a_cut_without_asking_the_model() -> None:
    gate = begun(np.full((48, 48, 3), 20, np.uint8))
    assert gate.decide(redrawn(np.full((48, 48, 3), 200, np.uint8), [*range(36)]), S, unasked).reason == "cut"


def test_rows_decide_what_is_held() -> None:
    gate, frame = begun(scene(0)), redrawn(scene(0), [4])
    assert decide(gate, frame, QUIET).reason == "held"
    assert decide(gate, frame, Rows(3, HOLD_LOAD - 1, exact=False, settled=True)).reason == "held"
    assert decide(gate, frame, Rows(3, HOLD_LOAD, exact=False, settled=True)).reason == "change"
    assert decide(gate, frame, BUSY).reason == "change"


def test_an_exact_model_holds_only_what_changes_nothing() -> None:
    gate, frame = begun(scene(0)), redrawn(scene(0), [4])
    assert decide(gate, frame, Rows(1, 0.5, exact=True, settled=True)).reason == "change"
    assert decide(gate, frame, Rows(0, 0.5, exact=True, settled=True)).reason == "held"


@pytest.mark.parametrize("frame", [scene(0), redrawn(scene(0), [4])], ids=["identical", "quiet"])
def test_what_was_held_for_long_is_renewed(frame: Frame) -> None:
    gate = begun(scene(0))
    found = [decide(gate, frame, QUIET, at_s) for at_s in (29.9, 30.0)]
    assert [(one.reason, one.early) for one in found] == [("held", False), ("max_hold", False)]
    found = [decide(gate, frame, QUIET, at_s, slack=True) for at_s in (22.4, 22.5)]
    assert [(one.reason, one.early) for one in found] == [("held", False), ("max_hold", True)]


def test_old_knowledge_of_places_is_renewed_when_there_is_time() -> None:
    gate, frame = begun(scene(0)), redrawn(scene(0), [4])
    old = Rows(30, 2 * HOLD_LOAD, exact=False, settled=False)
    assert decide(gate, frame, old).reason == "change"
    renewed = decide(gate, frame, old, slack=True)
    assert (renewed.reason, renewed.early) == ("max_hold", True)


def test_a_frame_that_its_owner_writes_over_is_a_new_one() -> None:
    frame = scene(0)
    gate = begun(frame)
    frame[:8] = 0
    assert decide(gate, frame, BUSY).reason == "change"


# In front of a ViT


def test_an_identical_frame_computes_nothing_and_is_the_same_to_the_bit() -> None:
    encoder = RealtimeVideoEncoder(tiny_encoder())
    frames = np.stack([*walk(6), *[walk(6)[-1]] * 3])
    result = encoder.encode_stream(frames)
    for index in (6, 7, 8):
        quality = result.quality[index]
        assert (quality.reason, quality.held, quality.tokens_updated, quality.encode_us) == ("held", True, 0, 0)
        assert np.array_equal(result.features[index], result.features[5])


def test_first_two_passes_are_cold_and_the_next_are_not() -> None:
    result = RealtimeVideoEncoder(tiny_encoder()).encode_stream(
        np.stack([redrawn(scene(0), [*range(12)], n) for n in range(4)])
    )
    assert [quality.cold for quality in result.quality] == [True, True, False, False]


def test_max_hold_is_a_dense_pass() -> None:
    model = tiny_encoder()
    encoder = RealtimeVideoEncoder(model, gate=GateConfig(max_hold_s=1.0))
    frames = np.stack([redrawn(scene(0), [*range(12)], n) for n in range(3)])
    encoder.encode_stream(frames, timestamps_us=[0, 40_000, 80_000])
    state = encoder._sessions["default"]._state
    state.cache.blocks[0].mlp.output[:] += 1
    found = encoder.encode_stream(frames[-1], timestamps_us=[2_000_000])
    assert found.quality[0].reason == "max_hold"
    assert found.quality[0].tokens_updated == found.quality[0].tokens_total == 37
    np.testing.assert_array_equal(found.features[0], unit(plain(model, frames[-1])))


def test_a_reset_camera_starts_cold_and_exact() -> None:
    model = tiny_encoder()
    encoder = RealtimeVideoEncoder(model)
    encoder.encode_stream(np.stack(walk(5)))
    encoder.reset("default")
    found = encoder.encode_stream(walk(6)[-1])
    assert found.quality[0].cold
    np.testing.assert_array_equal(found.features[0], unit(plain(model, walk(6)[-1])))


def test_looking_ahead_leaves_the_camera_where_it_was() -> None:
    encoder, twin = RealtimeVideoEncoder(tiny_encoder()), RealtimeVideoEncoder(tiny_encoder())
    frames = np.stack([redrawn(scene(0), [*range(9)], n) for n in range(12)])
    for one in (encoder, twin):
        one.encode_stream(frames[:6])
    ahead = encoder.encode_stream(frames[6:9], update_temporal_context=False)
    expected = twin.encode_stream(frames[6:])
    assert np.array_equal(encoder.encode_stream(frames[6:]).features, expected.features)
    assert np.array_equal(ahead.features, expected.features[:3])


def test_a_copied_session_shares_the_weights() -> None:
    model = tiny_encoder()
    session = Session(model, GateConfig(), None)
    for index, frame in enumerate(walk(3)):
        list(model.encode([session.begin(frame, index, session.decide(frame, index))]))
    twin = session.copy()
    assert twin._encoder is session._encoder
    assert twin._state is not session._state
    memory, copied = (one._state.cache.blocks[0].kv.output for one in (session, twin))
    assert np.array_equal(memory, copied)
    assert not np.shares_memory(memory, copied)


@pytest.mark.parametrize("caching", [False, True])
def test_without_caching_every_pass_is_the_network_to_the_bit(caching: bool) -> None:
    model = tiny_encoder()
    frames = np.stack([redrawn(scene(0), [*range(9)], n) for n in range(6)])
    found = RealtimeVideoEncoder(model, caching=caching).encode_stream(frames)
    exact = [np.array_equal(row, unit(plain(model, frame))) for row, frame in zip(found.features, frames, strict=True)]
    assert exact[:3] == [True, True, not caching]
    assert all(exact) is not caching


def unit(vector: Any) -> Any:
    return vector / np.float32(np.linalg.norm(vector))
