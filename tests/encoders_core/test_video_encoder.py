"""VideoEncoder: clips of every kind, aggregation, every temporal option with its effect, trained frame features kept."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from encoders_core.errors import InputError, OptionError
from encoders_core.video_encoder import VideoEncoder
from encoders_core.vision_encoder import VisionEncoder

cv2 = pytest.importorskip("cv2", reason="video files and optical flow need OpenCV")

SMALL: dict[str, Any] = {
    "frame_size": 32,
    "patch_size": 8,
    "num_layers": 2,
    "hidden_dim": 32,
    "num_heads": 2,
    "temporal_layers": 2,
    "output_dim": 24,
    "max_frames": 12,
    "seed": 0,
}


def make(**options: Any) -> VideoEncoder:
    return VideoEncoder(**SMALL | options)


def trained(encoder: VideoEncoder) -> VideoEncoder:
    """One whose temporal weights have left their zeros."""
    torch.manual_seed(1)
    modules = [encoder.pool] if encoder.temporal is None else [encoder.pool, encoder.temporal]
    for module in modules:
        for parameter in module.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
    return encoder


def floats(frames: int = 6, batch: int = 2) -> Tensor:
    return torch.randn(batch, frames, 3, 32, 32, generator=torch.Generator().manual_seed(frames))


def pixels(frames: int = 6, side: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)


def configure(encoder: VideoEncoder, **sections: Any) -> VideoEncoder:
    encoder.configure_temporal_processing(sections)
    return encoder


def feature(encoder: VideoEncoder, videos: Any, how: Any = None) -> Tensor:
    return encoder.encode(videos, how).features


def write_video(path: Path, frames: NDArray[np.uint8], fps: float) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, frames.shape[2:0:-1])
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame[:, :, ::-1])
    writer.release()
    return path


# --- Clips ----------------------------------------------------------------------------------------------------------


def test_encode_gives_unit_vectors_and_who_was_attended_to() -> None:
    result = make().encode(floats(), temporal_aggregation="attention", return_temporal_attention=True)
    assert result.features.shape == (2, 24)
    torch.testing.assert_close(result.features.norm(dim=1), torch.ones(2))
    assert result.temporal_attention is not None
    torch.testing.assert_close(result.temporal_attention, torch.full((2, 6), 1 / 6))
    assert result.frame_indices.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert make().encode(floats()).temporal_attention is None
    raw = make().encode(floats(), normalize_output=False).features
    assert not torch.allclose(raw.norm(dim=1), torch.ones(2), atol=0.01)


def test_same_seed_same_features_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = make(), make(), make(seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(feature(first, floats()), feature(second, floats()))
    assert not torch.allclose(feature(first, floats()), feature(other, floats()))


def test_every_kind_of_clip_is_the_same_clip() -> None:
    encoder, array = make(), pixels()
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    expected = feature(encoder, array)
    image = pytest.importorskip("PIL.Image", reason="PIL pictures need Pillow")
    kinds = [tensor, tensor[None], array[None], [array], [tensor], list(array), list(tensor), {"array": array}]
    for kind in [*kinds, [image.fromarray(frame) for frame in array], [list(array)]]:
        torch.testing.assert_close(feature(encoder, kind), expected, atol=1e-6, rtol=0)
    assert feature(encoder, [array, array]).shape == (2, 24)
    bgr = encoder.encode(np.ascontiguousarray(array[..., ::-1]), channel_order="bgr").features
    torch.testing.assert_close(bgr, expected, atol=1e-6, rtol=0)
    unit = encoder.encode(tensor.float() / 255, value_range="unit").features
    torch.testing.assert_close(unit, expected, atol=1e-6, rtol=0)


def test_floats_from_0_to_1_are_asked_about_once_a_clip(caplog: pytest.LogCaptureFixture) -> None:
    make().encode(torch.rand(1, 6, 3, 32, 32))
    assert sum("already normalised" in record.message for record in caplog.records) == 1
    caplog.clear()
    make().encode(torch.rand(1, 6, 3, 32, 32), value_range="normalized")
    assert not any("already normalised" in record.message for record in caplog.records)


def test_clips_of_different_lengths_are_encoded_as_each_alone() -> None:
    encoder = trained(make())
    clips = [pixels(3, seed=1), pixels(9, seed=2), pixels(1, seed=3)]
    for how in ("attention", "mean", "max", "lstm"):
        together = encoder.encode(clips, how)
        alone = torch.cat([feature(encoder, clip, how) for clip in clips])
        torch.testing.assert_close(together.features, alone, atol=1e-5, rtol=0)
    assert together.step_mask.sum(1).tolist() == [3, 9, 1]
    assert together.frame_indices[0].tolist() == [0, 1, 2, *[-1] * 6]


def test_results_of_different_lengths_join() -> None:
    encoder = make()
    one, other = (encoder.encode(pixels(length), return_temporal_attention=True) for length in (3, 5))
    both = torch.cat([one, other])  # type: ignore[list-item]
    assert both.features.shape == (2, 24)
    assert both.temporal_attention.shape == (2, 5)  # type: ignore[attr-defined]
    assert both.step_mask.sum(1).tolist() == [3, 5]  # type: ignore[attr-defined]
    chunked = encoder.encode([pixels(3), pixels(5)], batch_size=1, return_layer_attention=True)
    assert chunked.layer_attention is not None
    assert chunked.layer_attention.shape == (2, 2, 2, 5, 5)


def test_masked_frames_count_for_nothing() -> None:
    encoder, x = trained(make()), floats(6)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[:, 3] = False
    moved = x.clone()
    moved[:, 3] = 9
    expected = encoder.encode(x, frame_mask=mask).features
    torch.testing.assert_close(encoder.encode(moved, frame_mask=mask).features, expected)
    torch.testing.assert_close(encoder.encode(x[:, [0, 1, 2, 4, 5]]).features, expected, atol=1e-5, rtol=0)
    with torch.no_grad():  # as a module the frame keeps its place in time
        torch.testing.assert_close(encoder(moved, mask), encoder(x, mask))
        assert not torch.allclose(encoder(x, mask), encoder(x))
    with pytest.raises(InputError, match="one entry for each of 6 frames"):
        encoder.encode(x, frame_mask=mask[:, :4])
    with pytest.raises(InputError, match="one row for each of 2 clips"):
        encoder.encode(x, frame_mask=mask[:1])


def test_more_frames_than_max_frames_are_sampled() -> None:
    encoder, clip = make(max_frames=4), pixels(10)
    result = encoder.encode(clip)
    assert result.frame_indices.tolist() == [[0, 3, 6, 9]]
    torch.testing.assert_close(result.features, feature(encoder, clip[[0, 3, 6, 9]]))


def test_clips_that_say_their_rate_are_brought_to_fps() -> None:
    encoder, clip = make(fps=10), pixels(12)
    assert encoder.encode(clip, source_fps=30).frame_indices.tolist() == [[0, 3, 6, 9]]
    said = {"array": clip, "video_metadata": {"fps": 20}}
    assert encoder.encode(said).frame_indices.tolist() == [[0, 2, 4, 6, 8, 10]]
    assert len(encoder.encode(clip, source_fps=5).frame_indices[0]) == 12
    assert len(encoder.encode(clip).frame_indices[0]) == 12


def test_video_file_is_sampled_and_read(tmp_path: Path) -> None:
    smooth = np.stack([np.full((48, 64, 3), 20 * index, np.uint8) for index in range(10)])
    path = write_video(tmp_path / "a.avi", smooth, fps=30)
    encoder = make(max_frames=4)
    result = encoder.encode(path)
    assert result.frame_indices.tolist() == [[0, 3, 6, 9]]
    expected = feature(encoder, smooth[[0, 3, 6, 9]])
    assert float((result.features * expected).sum()) > 0.999
    assert make(fps=10).encode(str(path)).frame_indices.tolist() == [[0, 3, 6]]
    assert feature(encoder, [path, path]).shape == (2, 24)


def test_video_file_key_frames_are_found_in_the_file(tmp_path: Path) -> None:
    shots = np.concatenate(
        [np.repeat(pixels(1, 48, seed)[:, ::8, ::8].repeat(8, 1).repeat(8, 2), 4, 0) for seed in range(3)]
    )
    path = write_video(tmp_path / "a.avi", shots, fps=25)
    encoder = configure(make(), frame_sampling={"strategy": "key_frames"})
    found = encoder.encode(path).frame_indices[0].tolist()
    assert [index // 4 for index in found] == [0, 1, 2]


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.avi").write_bytes(b"not a video" * 100)
    for source, words in (
        (tmp_path / "none.avi", "no video file"),
        (tmp_path / "bad.avi", "damaged, or no video"),
        ("rtsp://user:secret@camera/1", "the address rtsp://...: streams go through encode_stream"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            make().encode(source)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("videos", "words"),
    [
        (torch.randn(3, 32, 32), r"tensor \(B, T, C, H, W\)"),
        (torch.randn(1, 4, 3, 32, 33), "multiples of 8"),
        (torch.randn(0, 3, 32, 32), "at least one frame"),
        ([], "at least one clip"),
        (3, "got int"),
        ({"frames": 3}, "unknown key 'frames'"),
    ],
)
def test_what_is_no_clip_is_named(videos: Any, words: str) -> None:
    with pytest.raises((InputError, OptionError), match=words):
        make().encode(videos)


def test_preprocessing_off_takes_model_input_alone() -> None:
    encoder = make(enable_preprocessing=False)
    assert feature(encoder, floats()).shape == (2, 24)
    with pytest.raises(InputError, match="preprocessing is off"):
        encoder.encode(pixels())


def test_encode_video_follows_sentence_transformers() -> None:
    encoder, clips = make(), [pixels(4, seed=1), pixels(6, seed=2), pixels(2, seed=3)]
    vectors = encoder.encode_video(clips, batch_size=2, normalize_embeddings=True)
    assert isinstance(vectors, np.ndarray)
    np.testing.assert_allclose(vectors, encoder.encode(clips).features.numpy(), atol=1e-5)
    one = encoder.encode_video(clips[0], convert_to_tensor=True, truncate_dim=8)
    assert isinstance(one, Tensor)
    assert one.shape == (8,)
    assert encoder.encode_video([]).shape == (0, 24)  # type: ignore[union-attr]
    with pytest.raises(OptionError, match="did you mean 'batch_size'"):
        encoder.encode_video(clips, batchsize=2)


# --- Trained frame features -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["transformer", "lstm", "gru", "conv3d"])
@pytest.mark.parametrize("how", ["attention", "mean", "lstm"])
def test_untrained_temporal_model_keeps_trained_frame_features(kind: str, how: Any) -> None:
    images = VisionEncoder(image_size=32, patch_size=8, num_layers=2, hidden_dim=32, num_heads=2, output_dim=24, seed=3)
    encoder = configure(VideoEncoder.from_image_encoder(images), temporal_modeling={"type": kind})
    clip = pixels(5)
    frames = images.encode(clip, normalize_output=False).features
    ours = encoder.encode(clip, how, normalize_output=False, return_frame_features=True)
    torch.testing.assert_close(ours.features[0], frames.mean(0), atol=1e-5, rtol=0)
    assert ours.frame_features is not None
    torch.testing.assert_close(ours.frame_features[0], frames, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode(clip, "max", normalize_output=False).features[0], frames.amax(0))


def test_still_clip_of_an_image_encoder_has_the_images_feature() -> None:
    images = VisionEncoder(image_size=32, patch_size=8, num_layers=2, hidden_dim=32, num_heads=2, seed=3)
    picture = pixels(1)[0]
    still = VideoEncoder.from_image_encoder(images).encode(np.repeat(picture[None], 7, 0))
    torch.testing.assert_close(still.features, images.encode(picture).features, atol=1e-5, rtol=0)


def test_image_checkpoint_becomes_a_video_encoder_and_is_saved_whole(tmp_path: Path) -> None:
    images = VisionEncoder(image_size=32, patch_size=8, num_layers=2, hidden_dim=32, num_heads=2, output_dim=24, seed=3)
    images.trained = True
    images.save_pretrained(tmp_path / "images")
    encoder = trained(VideoEncoder.from_pretrained(tmp_path / "images", max_frames=5, fps=7, temporal_layers=1))
    assert (encoder.trained, encoder.config.max_frames, encoder.config.fps) == (True, 5, 7.0)
    configure(encoder, frame_sampling={"strategy": "adaptive"}, motion_modeling={"enable_optical_flow": True})
    encoder.save_pretrained(tmp_path / "video")
    again = VideoEncoder.from_pretrained(tmp_path / "video")
    assert (again.config, again.transform, again.trained) == (encoder.config, encoder.transform, True)
    assert torch.equal(feature(again, pixels(9)), feature(encoder, pixels(9)))


@pytest.mark.parametrize("kind", ["transformer", "lstm", "gru", "conv3d"])
def test_random_encoder_is_saved_whole(kind: str, tmp_path: Path) -> None:
    encoder = trained(configure(make(), temporal_modeling={"type": kind, "positional_encoding": "learnable"}))
    encoder.save_pretrained(tmp_path)
    again = VideoEncoder.from_pretrained(tmp_path)
    assert not again.trained
    assert torch.equal(feature(again, floats()), feature(encoder, floats()))


def test_gradients_reach_every_weight_that_the_way_uses() -> None:
    encoder = trained(make()).train()
    encoder(floats(), temporal_aggregation="attention").square().sum().backward()
    without = {name for name, weight in encoder.named_parameters() if weight.grad is None}
    assert without == {"pool.motion_gain", *(name for name in without if ".lstm." in name or "correct" in name)}
    assert encoder.training


# --- Aggregation ----------------------------------------------------------------------------------------------------


def test_aggregations_differ_once_they_are_trained() -> None:
    encoder = trained(make())
    features = [feature(encoder, floats(), how) for how in ("attention", "mean", "max", "lstm")]
    for index, one in enumerate(features):
        assert all(not torch.allclose(one, other, atol=1e-3) for other in features[index + 1 :])
    torch.testing.assert_close(feature(encoder, floats()), features[0])


def test_temporal_attention_of_each_aggregation() -> None:
    encoder = trained(make())
    for how in ("attention", "mean", "max"):
        weights = encoder.encode(floats(), how, return_temporal_attention=True).temporal_attention
        assert weights is not None
        torch.testing.assert_close(weights.sum(1), torch.ones(2))
    with pytest.raises(OptionError, match="'lstm' weighs no frames"):
        encoder.encode(floats(), "lstm", return_temporal_attention=True)
    for unknown in ("median", "cls_token"):
        with pytest.raises(OptionError, match="attention, mean, max, lstm"):
            encoder.encode(floats(), unknown)  # type: ignore[arg-type]


# --- Options: each has an effect ------------------------------------------------------------------------------------


def test_specified_configuration_is_taken_whole() -> None:
    encoder = configure(
        make(),
        temporal_modeling={
            "type": "transformer",
            "temporal_attention": True,
            "positional_encoding": "sinusoidal",
            "max_temporal_distance": 64,
        },
        frame_sampling={"strategy": "uniform", "adaptive_threshold": 0.8, "interpolation": "bilinear"},
        motion_modeling={
            "enable_optical_flow": False,
            "motion_attention": True,
            "temporal_pooling": "attention_weighted",
        },
    )
    assert encoder.encode(floats()).motion is not None


@pytest.mark.parametrize(
    "change",
    [
        {"type": "lstm"},
        {"type": "gru"},
        {"type": "conv3d"},
        {"positional_encoding": "learnable"},
        {"positional_encoding": "none"},
        {"max_temporal_distance": 1},
        {"num_layers": 1},
        {"causal": True},
    ],
)
def test_temporal_modeling_option_changes_features_once_trained(change: dict[str, Any]) -> None:
    plain = feature(trained(make()), floats())
    encoder = configure(make(), temporal_modeling=change)
    assert not torch.allclose(feature(trained(encoder), floats()), plain, atol=1e-4)


def test_temporal_attention_off_takes_the_attention_layer_away() -> None:
    encoder = configure(make(), temporal_modeling={"type": "lstm", "temporal_attention": False})
    assert encoder.encode(floats(), return_layer_attention=True).layer_attention is None
    configure(encoder, temporal_modeling={"temporal_attention": True})
    assert encoder.encode(floats(), return_layer_attention=True).layer_attention is not None
    with pytest.raises(OptionError, match="a transformer consists of it"):
        configure(make(), temporal_modeling={"temporal_attention": False})


def test_conv3d_looks_at_where_things_are() -> None:
    encoder = trained(configure(make(), temporal_modeling={"type": "conv3d", "temporal_attention": False}))
    assert encoder.temporal is not None
    with torch.no_grad():
        steps = encoder.tower(floats(), maps=True)
        assert steps.maps is not None
        assert steps.maps.shape == (2, 6, 4, 4, 32)
        turned = encoder.temporal(steps.features, maps=steps.maps.flip(2))
        assert not torch.allclose(turned, encoder.temporal(steps.features, maps=steps.maps), atol=1e-3)


def test_configuring_again_keeps_the_weights_of_a_temporal_model_that_stays() -> None:
    encoder = trained(make())
    before = feature(encoder, floats())
    configure(encoder, temporal_modeling={"type": "transformer", "max_temporal_distance": 12})
    torch.testing.assert_close(feature(encoder, floats()), before)


def test_frame_sampling_strategies_choose_other_frames() -> None:
    flat = np.concatenate([np.full((4, 32, 32, 3), level, np.uint8) for level in (10, 200, 20)])
    chosen = {}
    for strategy in ("uniform", "adaptive", "key_frames"):
        encoder = configure(make(max_frames=12), frame_sampling={"strategy": strategy, "adaptive_threshold": 0.7})
        chosen[strategy] = encoder.encode(flat).frame_indices[0].tolist()
    assert chosen == {"uniform": list(range(12)), "adaptive": [0, 4, 8], "key_frames": [0, 4, 8]}


def test_sampling_thresholds_decide() -> None:
    levels = np.stack([np.full((32, 32, 3), 60 + 12 * index, np.uint8) for index in range(8)])

    def count(**options: Any) -> int:
        return len(configure(make(), frame_sampling=options).encode(levels).frame_indices[0])

    assert count(strategy="adaptive", adaptive_threshold=0.999) > count(strategy="adaptive", adaptive_threshold=0.9)
    assert count(strategy="key_frames", key_frame_threshold=0.9999) > count(strategy="key_frames")


def test_interpolation_changes_how_frames_are_resized() -> None:
    clip = pixels(4, side=80)
    features = {
        name: feature(configure(make(), frame_sampling={"interpolation": name}), clip)
        for name in ("nearest", "bilinear", "bicubic", "area")
    }
    assert not torch.allclose(features["nearest"], features["bilinear"], atol=1e-4)
    assert not torch.allclose(features["bicubic"], features["bilinear"], atol=1e-4)
    assert torch.equal(features["bilinear"], feature(make(), clip))


def moving_clip() -> NDArray[np.uint8]:
    """Still, but for a jump of the picture by three pixels before frame 4."""
    texture = cv2.GaussianBlur(pixels(1, 48)[0], (5, 5), 0)
    return np.stack([texture[8:40, 8 + 3 * (index >= 4) : 40 + 3 * (index >= 4)] for index in range(8)])


def test_motion_attention_draws_the_weights_to_where_it_moves() -> None:
    encoder = configure(make(), motion_modeling={"motion_attention": True})
    result = encoder.encode(moving_clip(), return_temporal_attention=True)
    assert result.temporal_attention is not None
    assert result.motion is not None
    assert int(result.temporal_attention[0].argmax()) == int(result.motion[0].argmax()) == 4
    assert make().encode(moving_clip()).motion is None
    assert not torch.allclose(result.features, feature(make(), moving_clip()), atol=1e-4)
    still = np.repeat(pixels(1), 5, 0)
    torch.testing.assert_close(feature(encoder, still), feature(make(), still), atol=1e-6, rtol=0)


def test_optical_flow_measures_motion_in_pixels() -> None:
    flow = configure(make(), motion_modeling={"enable_optical_flow": True}).encode(moving_clip()).motion
    levels = configure(make(), motion_modeling={"motion_attention": True}).encode(moving_clip()).motion
    assert flow is not None
    assert levels is not None
    assert float(flow[0, 4]) == pytest.approx(3, abs=1.0)
    assert float(flow[0, [1, 2, 3, 5, 6, 7]].max()) < 0.1
    assert float(levels[0, 4]) > 5


def test_motion_ignores_padding() -> None:
    encoder = configure(make(), motion_modeling={"motion_attention": True})
    clips = [moving_clip(), moving_clip()[3:6]]
    together = encoder.encode(clips)
    alone = torch.cat([feature(encoder, clip) for clip in clips])
    torch.testing.assert_close(together.features, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pooling", ["mean", "max", "lstm"])
def test_temporal_pooling_is_what_encode_does_when_it_names_none(pooling: Any) -> None:
    encoder = configure(trained(make()), motion_modeling={"temporal_pooling": pooling})
    torch.testing.assert_close(feature(encoder, floats()), feature(encoder, floats(), pooling))
    assert not torch.allclose(feature(encoder, floats()), feature(encoder, floats(), "attention"), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temporal_modelling": {}}, "did you mean 'temporal_modeling'.*valid: temporal_modeling, frame_sampling"),
        ({"temporal_modeling": {"kind": "lstm"}}, "valid: type, temporal_attention"),
        ({"temporal_modeling": {"type": "mamba"}}, "'transformer', 'lstm', 'gru', 'conv3d'"),
        ({"temporal_modeling": {"max_temporal_distance": 0}}, "positive number of frames"),
        ({"frame_sampling": {"strategy": "random"}}, "'uniform', 'adaptive', 'key_frames'"),
        ({"frame_sampling": {"adaptive_threshold": 2.0}}, "adaptive_threshold"),
        ({"frame_sampling": {"interpolation": "cubic"}}, "'bicubic'"),
        ({"motion_modeling": {"temporal_pooling": "median"}}, "'attention_weighted', 'mean', 'max', 'lstm'"),
        ({"motion_modeling": {"temporal_pooling": "cls_token"}}, "goes past the temporal model"),
        ({"motion_modeling": {"motion_attention": True, "temporal_pooling": "max"}}, "no attention to draw"),
        ({"motion_modeling": {"enable_optical_flow": "yes"}}, "expected bool"),
    ],
)
def test_options_that_do_not_fit_are_refused_and_change_nothing(options: dict[str, Any], words: str) -> None:
    encoder = make()
    before = (encoder.config, encoder.transform, encoder.temporal)
    with pytest.raises(OptionError, match=words):
        encoder.configure_temporal_processing(options)
    assert (encoder.config, encoder.transform, encoder.temporal) == before


def test_without_temporal_layers_there_is_none_until_configured() -> None:
    encoder = make(temporal_layers=0)
    assert encoder.temporal is None
    torch.testing.assert_close(feature(encoder, floats(), "mean"), feature(make(), floats(), "mean"), atol=1, rtol=1)
    configure(encoder, temporal_modeling={"type": "gru"})
    assert encoder.temporal is not None
    assert encoder.temporal.config.depth == 4


def test_random_weights_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not make().trained
    assert "random" in caplog.text


def test_causal_encoder_frame_by_frame_equals_the_batch() -> None:
    encoder = trained(configure(make(), temporal_modeling={"type": "gru", "causal": True, "max_temporal_distance": 3}))
    assert encoder.temporal is not None
    x, state = floats(9), encoder.temporal.new_state()
    with torch.no_grad():
        steps = encoder.tower(x)
        stepped = [encoder.temporal.step(state, frame) for frame in steps.features.unbind(1)]
        torch.testing.assert_close(torch.stack(stepped, 1), encoder.temporal(steps.features), atol=1e-5, rtol=0)


# --- As a module ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch's own LSTM assigns its weights anew in export
@pytest.mark.parametrize("kind", ["transformer", "lstm", "conv3d"])
def test_exports_with_a_batch_of_any_size(kind: str) -> None:
    encoder = trained(configure(make(num_layers=1), temporal_modeling={"type": kind, "num_layers": 1}))
    batch = torch.export.Dim("batch", min=1, max=16)
    exported = torch.export.export(encoder, (floats(4, 2),), dynamic_shapes=({0: batch},))
    x = floats(4, 3)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), encoder(x), atol=1e-5, rtol=0)


def test_compiles_in_one_graph() -> None:
    encoder = trained(make(num_layers=1, temporal_layers=1))
    with torch.no_grad():
        compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(floats(4)), encoder(floats(4)), atol=1e-5, rtol=0)


def test_copies_and_state_dicts_are_whole() -> None:
    encoder, other = trained(make()), make(seed=9)
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(feature(other, floats()), feature(encoder, floats()))
    half = make().to(torch.bfloat16)
    assert half.encode(floats()).features.dtype == torch.float32
    assert float((half.encode(floats()).features * feature(make(), floats())).sum(1).min()) > 0.99
