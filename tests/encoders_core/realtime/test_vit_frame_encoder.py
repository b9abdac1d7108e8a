"""A ViT behind the frame-encoder protocol: what its passes promise, camera by camera."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders_core.draining import drain
from encoders_core.errors import EncoderError, InputError, OptionError, WeightsError
from encoders_core.preprocessing import InputSpec
from encoders_core.realtime import vit_frame_encoder as module
from encoders_core.realtime.change import Change
from encoders_core.realtime.frame_encoder import ScalableFrameEncoder, dense_steps, load_frame_encoder
from encoders_core.realtime.token_gate import RowEncoder
from encoders_core.realtime.tokens import limits
from encoders_core.realtime.tokens.cache import TokenCache, memory_bytes
from encoders_core.realtime.vit_frame_encoder import VitFrameEncoder
from encoders_core.vision_encoder import VisionEncoder
from tests.encoders_core.realtime.tiny_vits import (
    FAMILIES,
    PATCH,
    SHAPE,
    SIZE,
    SPEC,
    distance,
    plain,
    redrawn,
    scene,
    see,
    tiny_encoder,
    tiny_vit,
    walk,
    warmed,
)

CLIPS = os.environ.get("CAMVEC_CLIPS")
CUT = Change(score=90.0, share=1.0, cut=True, light=False)


@pytest.fixture(params=["plain", "packed"])
def layers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the layers of torch, or with packed ones."""
    if request.param == "plain":
        monkeypatch.setattr(module, "packing_obstacle", lambda: "not wanted here")
    return str(request.param)


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize("family", FAMILIES)
def test_first_frames_cut_and_reset_are_the_network_to_the_bit(family: str) -> None:
    encoder, frames = tiny_encoder(family), walk(6)
    state = encoder.new_state()
    for frame in frames[:2]:
        assert encoder.plan(state, frame).cold
        assert np.array_equal(see(encoder, state, frame), plain(encoder, frame))
    see(encoder, state, frames[2])
    cut = encoder.plan(state, scene(5), CUT)
    assert (cut.cold, cut.cut, cut.rows) == (True, True, encoder.rows_total)
    assert np.array_equal(drain(encoder.encode([cut]))[0], plain(encoder, scene(5)))
    see(encoder, state, redrawn(scene(5), [3]))
    state.cache.reset()
    assert encoder.plan(state, frames[3]).cold
    assert np.array_equal(see(encoder, state, frames[3]), plain(encoder, frames[3]))


def test_importance_is_measured_on_the_second_frame_and_kept_over_cuts() -> None:
    encoder = tiny_encoder()
    state = encoder.new_state()
    see(encoder, state, scene(0))
    assert state.cache.importance is None
    see(encoder, state, scene(0))
    measured = state.cache.importance
    assert measured is not None
    assert not encoder.plan(state, scene(0)).cold
    drain(encoder.encode([encoder.plan(state, scene(1), CUT)]))
    assert state.cache.importance is measured
    see(encoder, state, scene(2), refresh=True, study=True)
    assert state.cache.importance is not measured


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize("family", FAMILIES)
def test_at_scale_0_gated_passes_equal_the_network(family: str) -> None:
    encoder = tiny_encoder(family, dense_fallback=False)
    state = warmed(encoder, walk(1)[0], scale=0.0)
    for frame in [*walk(8), *(redrawn(scene(0), [step], step) for step in range(8)), scene(9)]:
        assert distance(see(encoder, state, frame), plain(encoder, frame)) < 1e-5
        assert len(state.counts) == 3  # it was a gated pass


def test_at_scale_0_block_0_computes_the_changed_rows_and_what_is_refreshed() -> None:
    encoder, frame = tiny_encoder(dense_fallback=False), scene(0)
    state = warmed(encoder, frame, scale=0.0)
    for step, patches in enumerate([[4], [0, 1, 2], [35], list(range(36))]):
        frame = redrawn(frame, patches, seed=step)
        class_token, refreshed = 0, state.cache.next_refresh
        see(encoder, state, frame)
        assert state.counts[0].kv == len({class_token, refreshed, *(1 + patch for patch in patches)})


def test_importance_is_drawn_to_the_mean_of_its_gate_and_keeps_its_order() -> None:
    measured = np.array([[1e-6, 0.1, 1.0, 10.0], [2.0, 2.0, 2.0, 2.0]], np.float32)
    shrunk = limits._shrunk(measured)
    assert (np.diff(shrunk[0]) > 0).all()
    assert shrunk[0, 3] / shrunk[0, 2] == pytest.approx(10**limits._TRUST, rel=1e-5)
    np.testing.assert_allclose(shrunk[1], measured[1], rtol=1e-6)
    assert (limits._shrunk(np.zeros((1, 3), np.float32)) >= 0).all()  # a gate that matters nothing


@pytest.mark.skipif(not CLIPS, reason="CAMVEC_CLIPS names no folder of clips")
def test_at_scale_0_gated_passes_equal_the_network_on_a_real_clip() -> None:
    av, cv2 = pytest.importorskip("av"), pytest.importorskip("cv2")
    encoder, state = tiny_encoder(dense_fallback=False), None
    with av.open(str(Path(str(CLIPS)) / "fix_person_table.mp4")) as container:
        for index, picture in zip(range(40), container.decode(video=0), strict=False):
            frame = cv2.resize(picture.to_ndarray(format="rgb24"), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
            state = state or warmed(encoder, frame, scale=0.0)
            assert distance(see(encoder, state, frame), plain(encoder, frame)) < 1e-5, index


def disturbance(rows: int, gate: str) -> NDArray[np.float32]:
    """Of changing sign: what is the same for a whole row does not get through a layer norm."""
    width = SHAPE["embed_dim"] * (2 if gate == "kv" else 1)
    return np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32)


@pytest.mark.parametrize("gate", ["query", "kv", "proj", "mlp"])
def test_stale_rows_are_found_by_the_rolling_refresh(gate: str) -> None:
    encoder = tiny_encoder("SigLIP", dense_fallback=False)
    frame = scene(0)
    state = warmed(encoder, frame)
    getattr(state.cache.blocks[1], gate).output[[3, 17, 30]] += disturbance(3, gate)
    wrong = distance(see(encoder, state, frame), plain(encoder, frame))
    assert wrong > 1e-3
    for _ in range(module._REFRESH_PASSES):
        got = see(encoder, state, frame)
    assert distance(got, plain(encoder, frame)) < 0.2 * wrong
    encoder.set_fidelity(state, 0.0)
    assert distance(see(encoder, state, frame), plain(encoder, frame)) < 1e-5


def test_a_stale_embedding_is_found_by_the_rolling_refresh() -> None:
    encoder, frame = tiny_encoder(), scene(0)
    state = warmed(encoder, frame)
    assert state.cache.patches is not None
    right = state.cache.patches.tokens.copy()
    state.cache.patches.tokens[20] += 1
    for _ in range(encoder.rows_total):
        see(encoder, state, frame)
    np.testing.assert_allclose(state.cache.patches.tokens, right, rtol=1e-5, atol=1e-5)


def test_patches_wait_until_their_change_would_be_seen() -> None:
    """A patch that gets a little brighter in each frame is embedded anew before it is too far from what it was."""
    encoder, frame = tiny_encoder(dense_fallback=False), scene(0) // 2
    state, waited = warmed(encoder, frame, scale=10.0), 0
    limits, patches = state.cache.patch_limits, state.cache.patches
    assert limits is not None
    assert patches is not None
    for _ in range(30):
        frame = frame.copy()
        frame[0, 0, 0] += 1
        state.embedded = 0
        see(encoder, state, frame)
        off = np.linalg.norm(np.subtract(frame, patches.pixels, dtype=np.float32)[:PATCH, :PATCH])
        assert off <= limits[0]
        waited += int(off > 0)
        assert state.embedded <= 2  # one that changed, one that is refreshed
    assert 0 < waited < 30


def test_no_patch_waits_where_nothing_may_be_off() -> None:
    encoder, frame = tiny_encoder(), scene(0)
    state = warmed(encoder, frame, scale=0.0)
    frame = frame.copy()
    frame[0, 0, 0] ^= 1
    assert encoder.look(state, frame).changed == 1
    assert state.cache.patches is not None
    assert np.array_equal(state.cache.patches.pixels, frame)


def test_stale_rows_are_healed_at_once_by_a_dense_refresh() -> None:
    encoder, frame = tiny_encoder(dense_fallback=False), scene(0)
    state = warmed(encoder, frame)
    state.cache.blocks[0].mlp.output[5:9] += disturbance(4, "mlp")
    assert distance(see(encoder, state, frame), plain(encoder, frame)) > 1e-3
    assert np.array_equal(see(encoder, state, frame, refresh=True), plain(encoder, frame))
    assert distance(see(encoder, state, frame), plain(encoder, frame)) < 1e-5


def test_a_small_change_is_updated_although_large_ones_fill_the_cap() -> None:
    encoder = tiny_encoder(dense_fallback=False)
    state, cap = warmed(encoder, scene(0)), encoder.buckets[0]
    small = scene(0)
    small[40:48, 40:48] += 3  # the last patch, row 36
    stale = state.cache.blocks[0].kv.reference[36].copy()
    for step in range(module._REFRESH_PASSES):
        see(encoder, state, redrawn(small, list(range(20)), seed=step), row_cap=cap)
        assert max(count.kv for count in state.counts) <= cap
        if not np.array_equal(state.cache.blocks[0].kv.reference[36], stale):
            break
    tokens = encoder.passes.embed(redrawn(small, list(range(20)), seed=step), SPEC)
    assert encoder.passes.first_change(state.cache, tokens)[36] < 1e-5


@pytest.mark.parametrize("bucket", [0, 1, 2])
def test_row_cap_holds_in_every_gate(bucket: int) -> None:
    encoder = tiny_encoder("timm, mean", dense_fallback=False)
    state, cap = warmed(encoder, scene(0), scale=0.1), encoder.buckets[bucket]
    for seed in range(6):
        see(encoder, state, scene(seed), row_cap=cap)
        assert all(max(count.kv, count.proj, count.mlp) <= cap for count in state.counts)


def test_more_tolerance_never_computes_more_rows_of_the_same_camera() -> None:
    encoder = tiny_encoder(dense_fallback=False)
    warm, rows = warmed(encoder, walk(1)[0]), []
    for scale in (0.0, 1.0, 100.0, 1000.0, 3000.0):
        state = copy.deepcopy(warm)
        encoder.set_fidelity(state, scale)
        see(encoder, state, walk(7)[-1])
        rows.append(state.counts[0].kv)
    assert rows == sorted(rows, reverse=True)
    assert rows[0] > rows[-1]


@pytest.mark.usefixtures("layers")
def test_cameras_that_take_turns_or_go_together_are_each_as_alone() -> None:
    encoder = tiny_encoder()
    clips = [walk(10, seed) for seed in range(3)]
    alone = []
    for clip in clips:
        state = encoder.new_state()
        alone.append([see(encoder, state, frame) for frame in clip])
    turns, together = ([encoder.new_state() for _ in clips] for _ in range(2))
    for step in range(10):
        frames = [clip[step] for clip in clips]
        for camera, (state, frame) in enumerate(zip(turns, frames, strict=True)):
            assert np.array_equal(see(encoder, state, frame), alone[camera][step])
        plans = [encoder.plan(state, frame) for state, frame in zip(together, frames, strict=True)]
        for camera, row in enumerate(drain(encoder.encode(plans))):
            assert distance(row, alone[camera][step]) < 1e-6


def test_dense_and_gated_plans_go_in_one_call() -> None:
    encoder = tiny_encoder()
    warm, cold = warmed(encoder, scene(0)), encoder.new_state()
    frames = [redrawn(scene(0), [3]), scene(1)]
    plans = [encoder.plan(state, frame) for state, frame in zip((warm, cold), frames, strict=True)]
    assert [plan.rows < plan.rows_total for plan in plans] == [True, False]
    got = drain(encoder.encode(plans))
    assert distance(got[0], plain(encoder, frames[0])) < 0.05
    assert np.array_equal(got[1], plain(encoder, frames[1]))


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_pass_that_fails_midway_leaves_its_camera_cold(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, frame = tiny_encoder(), redrawn(scene(0), [3, 4])
    state = warmed(encoder, scene(0))
    blocks = encoder.passes._blocks

    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(blocks[steps], "gated", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            see(encoder, state, frame)
    assert not state.cache.warm
    assert encoder.plan(state, frame).cold
    assert np.array_equal(see(encoder, state, frame), plain(encoder, frame))


@pytest.mark.parametrize("cold", [False, True])
def test_a_pass_that_is_given_up_leaves_its_camera_cold(cold: bool) -> None:
    encoder, frame = tiny_encoder(), redrawn(scene(0), [3, 4])
    state = encoder.new_state() if cold else warmed(encoder, scene(0))
    pass_ = encoder.encode([encoder.plan(state, frame)])
    next(pass_)
    pass_.close()
    assert encoder.plan(state, frame).cold
    assert np.array_equal(see(encoder, state, frame), plain(encoder, frame))


def test_fallback_to_dense_passes_lasts_longer_each_time_and_ends() -> None:
    encoder = tiny_encoder()
    state = warmed(encoder, scene(0), scale=0.0)
    kinds = []
    for seed in range(1, 10):
        plan = encoder.plan(state, scene(seed))
        kinds.append("gated" if plan.rows < plan.rows_total else "dense")
        got = drain(encoder.encode([plan]))[0]
        assert not plan.cold
        assert distance(got, plain(encoder, scene(seed))) < 1e-5
    assert kinds == ["gated", "dense", "dense", "gated", *["dense"] * 4, "gated"]
    state.dense_for = 0
    see(encoder, state, scene(seed))
    assert (state.failures, state.dense_for) == (0, 0)


def arrays(cache: TokenCache) -> list[Any]:
    gates = [gate for block in cache.blocks for gate in (block.query, block.kv, block.proj, block.mlp, block.watch)]
    places = cache.ages, cache.limits, cache.allowed, cache.importance, cache.patch_importance, cache.patch_limits
    return [*(part for gate in gates for part in gate), *places]


def test_looking_and_planning_leave_the_camera_as_it_is() -> None:
    encoder = tiny_encoder()
    state, frame = warmed(encoder, scene(0)), redrawn(scene(0), [8])
    before = copy.deepcopy(state.cache)
    rows, plan = encoder.look(state, frame), encoder.plan(state, frame)
    assert rows.changed == 1
    assert 1 <= plan.rows < plan.rows_total == 37
    assert all(np.array_equal(*pair) for pair in zip(arrays(before), arrays(state.cache), strict=True))
    assert encoder.look(encoder.new_state(), frame).load == float("inf")


def test_a_frame_that_its_owner_writes_over_is_looked_at_anew() -> None:
    encoder, frame = tiny_encoder(), scene(0)
    state = warmed(encoder, frame)
    assert encoder.look(state, frame).changed == 0
    frame[:] = scene(1)
    assert encoder.look(state, frame).changed > 10


def test_smaller_pictures_are_encoded_whole_and_leave_no_trace() -> None:
    encoder = tiny_encoder()
    assert isinstance(encoder, ScalableFrameEncoder)
    assert encoder.sizes_px == (48, 32, 24)
    state = warmed(encoder, scene(0))
    for size in encoder.sizes_px[1:]:
        small = scene(1, size)
        plan = encoder.plan(state, small)
        assert plan.rows == plan.rows_total
        before = copy.deepcopy(state.cache)
        assert np.array_equal(drain(encoder.encode([plan]))[0], plain(encoder, small))
        assert all(np.array_equal(*pair) for pair in zip(arrays(before), arrays(state.cache), strict=True))
    with pytest.raises(InputError, match=r"S one of \(48, 32, 24\), got \(40, 40, 3\)"):
        encoder.plan(state, scene(0, 40))


def test_what_the_cache_shows_is_not_held_after_a_smaller_picture() -> None:
    """The last vector is that of the small picture: the cache knows nothing of what was in it."""
    encoder = tiny_encoder()
    state = warmed(encoder, scene(0))
    see(encoder, state, scene(1, 32))
    rows = encoder.look(state, scene(0))
    assert rows.changed > 0
    assert rows.load == float("inf")
    see(encoder, state, scene(0))
    assert encoder.look(state, scene(0)).changed == 0


def test_fidelity_is_scaled_by_no_negative_number() -> None:
    encoder = tiny_encoder()
    state = warmed(encoder, scene(0))
    for scale in (-0.1, float("nan")):
        with pytest.raises(OptionError, match="expected a number of at least 0"):
            encoder.set_fidelity(state, scale)
    assert state.scale == 1.0


def test_buckets_ascend_to_a_whole_pass_and_leave_room_for_what_is_always_computed() -> None:
    assert tiny_encoder(depth=1).buckets == (3, 5, 9, 18, 37)
    assert tiny_encoder(img_size=(16, 16), depth=1).buckets == (3, 5)
    assert tiny_encoder(img_size=(112, 112), depth=1).buckets == (12, 25, 49, 98, 197)


def test_it_is_a_row_encoder_that_says_what_it_is() -> None:
    encoder = tiny_encoder("CLIP")
    assert isinstance(encoder, RowEncoder)
    assert (encoder.descriptor.dim, encoder.descriptor.pooling, encoder.descriptor.trained) == (24, "cls", True)
    network = tiny_vit()
    spec = InputSpec((SIZE, SIZE))
    random = VitFrameEncoder(network, spec, model_id="t", name="t", trained=False, variance=1.0)
    assert random.descriptor.name == "t, random weights"


def test_models_that_cannot_serve_are_refused() -> None:
    def make(**changes: object) -> None:
        VitFrameEncoder(
            tiny_vit(**changes), InputSpec((SIZE, SIZE)), model_id="t", name="t", trained=True, variance=1.0
        )

    with pytest.raises(OptionError, match="pools its tokens into one vector"):
        make(pool="none")
    with pytest.raises(OptionError, match="norms in front"):
        make(pre_layer_norm=False)
    with pytest.raises(OptionError, match=r"expected pictures of \(16, 16\), as the model, got \(48, 48\)"):
        make(img_size=(16, 16))


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_of_a_camera_is_bounded_by_the_formula(family: str) -> None:
    encoder = tiny_encoder(family)
    state, expected = warmed(encoder, scene(0)), memory_bytes(encoder.passes.network.config)
    for frame in [*walk(60), scene(3), scene(4)]:
        see(encoder, state, frame)
        assert state.cache.nbytes == expected


def test_a_copied_camera_goes_on_by_itself() -> None:
    encoder, frames = tiny_encoder(), walk(12)
    state = warmed(encoder, frames[0])
    twin = copy.deepcopy(state)
    ahead = [see(encoder, twin, frame) for frame in frames]
    again = [see(encoder, state, frame) for frame in frames]
    assert np.array_equal(ahead, again)


def test_dense_steps_know_of_no_camera() -> None:
    encoder = tiny_encoder()
    assert np.array_equal(drain(dense_steps(encoder, scene(2)))[0], plain(encoder, scene(2)))


def drift_slope(frames: int, encoder: VitFrameEncoder) -> tuple[float, float, float]:
    """Errors of a gated camera under random motion: mean, change over the run in units of it, and its standard error."""
    size, random = encoder.sizes_px[0], np.random.default_rng(0)
    frame = scene(0, size)
    state, patches = warmed(encoder, frame, scale=100.0), (size // PATCH) ** 2
    errors = []
    for step in range(frames):
        frame = redrawn(frame, random.choice(patches, patches // 8, replace=False).tolist(), seed=step)
        got = see(encoder, state, frame)
        if step % 10 == 0:
            errors.append(distance(got, plain(encoder, frame)))
    found, at = np.array(errors), np.linspace(-0.5, 0.5, len(errors))
    blocks = np.array_split(np.arange(len(found)), 20)  # neighbours are alike
    means, places = np.array([found[part].mean() for part in blocks]), np.array([at[part].mean() for part in blocks])
    slope = float(places @ means / (places @ places))
    spread = float((means - means.mean() - slope * places).std(ddof=2) / np.sqrt(places @ places))
    return float(found.mean()), slope / float(found.mean()), spread / float(found.mean())


def test_errors_do_not_grow_over_2000_frames() -> None:
    mean, slope, spread = drift_slope(2000, tiny_encoder(depth=2, img_size=(32, 32), dense_fallback=False))
    assert 0.005 < mean < 0.3
    assert slope < max(3 * spread, 0.05)


@pytest.mark.soak
@pytest.mark.parametrize("family", FAMILIES)
def test_errors_do_not_grow_over_10000_frames(family: str) -> None:
    mean, slope, spread = drift_slope(10_000, tiny_encoder(family, dense_fallback=False))
    assert 0.005 < mean < 0.3
    assert slope < max(3 * spread, 0.05)


# From a directory


def saved(folder: Path, size: int | tuple[int, int] = SIZE, channels: int = 3) -> Path:
    shape = {"patch_size": 8, "hidden_dim": SHAPE["embed_dim"], "num_heads": 2, "num_layers": 2, "output_dim": None}
    VisionEncoder(image_size=size, in_channels=channels, seed=0, **shape).save_pretrained(folder / "Yard 7")
    return folder / "Yard 7"


def test_a_directory_with_a_checkpoint_is_a_frame_encoder(tmp_path: Path) -> None:
    path = saved(tmp_path)
    encoder = load_frame_encoder(str(path))
    assert isinstance(encoder, VitFrameEncoder)
    descriptor = encoder.descriptor
    assert (descriptor.model_id, descriptor.name, descriptor.trained) == ("yard-7", "Yard 7, random weights", False)
    assert (descriptor.dim, descriptor.input.size_hw) == (32, (SIZE, SIZE))
    assert encoder.calibration.variance > 0
    reference = VisionEncoder.from_pretrained(path)
    expected = reference.encode_image(scene(0), normalize_embeddings=False, convert_to_numpy=True)
    got = drain(encoder.encode([encoder.plan(encoder.new_state(), scene(0))]))[0]
    assert distance(got, np.asarray(expected).reshape(-1)) < 1e-4


def test_the_variance_that_a_directory_states_is_taken(tmp_path: Path) -> None:
    path = saved(tmp_path)
    config = path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"feature_variance": 139.0}))
    assert load_frame_encoder(str(path)).calibration.variance == 139.0
    config.write_text(config.read_text().replace("139.0", "-1"))
    with pytest.raises(OptionError, match="feature_variance: expected a positive number, got -1"):
        load_frame_encoder(str(path))


def test_directories_that_hold_no_such_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoderError, match="empty"):
        load_frame_encoder(str(tmp_path / "empty"))
    with pytest.raises(OptionError, match="square pictures"):
        load_frame_encoder(str(saved(tmp_path / "wide", (32, 48))))
    with pytest.raises(OptionError, match="RGB pictures, got one of 1 channels"):
        load_frame_encoder(str(saved(tmp_path / "grey", channels=1)))
    with pytest.raises(OptionError, match="weights of its own"):
        load_frame_encoder(str(saved(tmp_path)), weights=tmp_path / "other.safetensors")
    (tmp_path / "Yard 7" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(WeightsError):
        load_frame_encoder(str(tmp_path / "Yard 7"))
