"""Rows recorded on one model and computed on another, for its time."""

from typing import Any

import numpy as np
import pytest

from encoders_core.errors import OptionError
from encoders_core.fidelity.camvec_policy import Camvec
from encoders_core.fidelity.disturbances import counter, texture
from encoders_core.fidelity.frame_policies import Hold, Plain
from encoders_core.fidelity.reference_policies import TokenPolicy, over_threshold
from encoders_core.fidelity.replay import Recording, Replay, replay
from encoders_core.fidelity.run import Trace, run_clip
from encoders_core.fidelity.subject import Subject
from encoders_core.realtime.tokens.passes import TokenPasses
from tests.encoders_core.fidelity.fidelity_gear import SIZE_PX, as_clip, small_subject, small_vit

CLIP = as_clip(counter(texture(SIZE_PX), 8))


def recorded() -> Trace:
    return run_clip([TokenPolicy("tokenwise", small_vit(), lambda: over_threshold(0.05))], CLIP)[0]


def test_the_same_model_computes_the_recorded_rows_in_every_layer() -> None:
    trace = recorded()

    again = run_clip([Replay(small_vit(), Recording.of(trace, 17))], CLIP)[0]

    np.testing.assert_array_equal(again.detail, trace.detail)


def test_what_ships_is_replayed_with_the_rows_that_its_attention_looked_at() -> None:
    trace = run_clip([Camvec(small_subject(), 0.02)], CLIP)[0]

    again = run_clip([Replay(small_vit(), Recording.of(trace, 17))], CLIP)[0]

    pairs = [pair for pair in zip(trace.detail, again.detail, strict=True) if pair[0] is not None]
    np.testing.assert_array_equal(*zip(*pairs, strict=True))


def test_rows_are_brought_to_another_depth_and_number_of_tokens() -> None:
    rows = np.array([[17, 17, 17, 17, 17], [2, 4, 17, 8, 2], [1, 17, 1, 1, 1]])

    found = Recording([rows, None], 17, [4, None]).for_model(depth=6, tokens=34)

    assert found.rows[1] is None
    assert found.rows[0] is not None
    assert found.rows[0][:, 1].tolist() == [34, 34, 8, 8, 34, 34]
    assert found.rows[0][:, 4].tolist() == [34, 34, 4, 4, 2, 2]
    assert found.embedded == [8, None]


def test_held_frames_are_held_again() -> None:
    rows = np.full((3, 5), 17)
    policy = Replay(small_vit(), Recording([rows, None, rows], 17, [None] * 3))

    assert [policy.step(CLIP.frames[0], 0).encoded for _ in range(3)] == [True, False, True]


def test_as_many_patches_are_embedded_as_were(monkeypatch: pytest.MonkeyPatch) -> None:
    trace, counts, embed = run_clip([Camvec(small_subject(), 0.02)], CLIP)[0], [], TokenPasses.embed_changed

    def counting(*args: Any) -> Any:
        tokens, count = embed(*args)
        counts.append(count)
        return tokens, count

    monkeypatch.setattr(TokenPasses, "embed_changed", counting)
    run_clip([Replay(small_vit(), Recording.of(trace, 17))], CLIP)
    # One may have been embedded by the look at the frame, and once more by the pass as it was to be refreshed.
    assert counts == [min(count, 16) for count in trace.embedded if count is not None]
    assert 0 < min(counts) < max(counts)


def test_cameras_that_share_a_pass_each_get_their_rows() -> None:
    trace, alone = recorded(), Replay(small_vit(), Recording.of(recorded(), 17))
    together = Replay(small_vit(), Recording.of(trace, 17), cameras=3)
    for frame in CLIP.frames:
        one, among = alone.step(frame, 0), together.step(frame, 0)
        np.testing.assert_array_equal(one.detail, among.detail)
        np.testing.assert_allclose(one.features, among.features, rtol=1e-4, atol=1e-4)


def test_a_replay_of_several_cameras_says_what_each_costs() -> None:
    found = replay(small_subject(), [CLIP], [Recording.of(recorded(), 17)], cameras=(1, 2))

    assert list(found["times_less_by_cameras"]) == ["1", "2"]
    assert found["times_less_by_cameras"]["1"] == found["times_less"]


def test_a_replay_is_labelled_as_speed_only() -> None:
    found = replay(small_subject(), [CLIP], [Recording.of(recorded(), 17)])

    assert found["weights"] == "random: speed only"
    assert [row["name"] for row in found["clips"]] == ["made"]
    assert found["plain_ms"] > 0 < found["replay_ms"]
    assert found["engine_full_ms"] > 0


def test_a_whole_recording_computes_every_row_and_gives_the_network_s_features() -> None:
    vit = small_vit()
    full = Replay(vit, Recording.whole(len(CLIP.frames), 17))
    first = full.step(CLIP.frames[0], 0)

    assert first.detail is not None
    assert (first.detail[:-1] == 17).all()
    np.testing.assert_allclose(first.features, Plain(vit).step(CLIP.frames[0], 0).features, rtol=1e-4, atol=1e-5)


def test_a_policy_that_does_not_count_rows_cannot_be_replayed() -> None:
    trace = run_clip([Hold(small_vit(), 2)], CLIP)[0]

    with pytest.raises(OptionError, match="nothing to replay"):
        Recording.of(trace, 17)


def test_a_model_that_is_no_vit_is_refused() -> None:
    subject = Subject("other", small_vit(), small_vit(), None, 1.0)

    with pytest.raises(OptionError, match="expected a ViT"):
        replay(subject, [CLIP], [Recording.of(recorded(), 17)])


def test_plain_counts_no_layers_of_its_own() -> None:
    assert not run_clip([Plain(small_vit())], CLIP)[0].counts_layers
