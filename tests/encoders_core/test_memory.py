"""Memory optimisations: each option's effect, and what cannot take effect."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from encoders_core.errors import OptionError
from encoders_core.feature_cache import FeatureCache, content_key
from encoders_core.memory import MemorySettings
from encoders_core.multimodal_combiner import MultimodalCombiner
from encoders_core.optimization import NotAppliedError, precision_obstacle
from encoders_core.results import EncodingResult
from encoders_core.text_encoder import TextEncoder
from encoders_core.video_encoder import VideoEncoder
from encoders_core.vision_encoder import VisionEncoder

SPECIFIED: dict[str, Any] = {
    "gradient_checkpointing": True,
    "mixed_precision": {"enable": True, "dtype": "float16", "loss_scaling": "dynamic"},
    "batch_processing": {"chunk_size": 8, "overlap_chunks": True, "memory_efficient_attention": True},
    "caching": {"enable_feature_caching": True, "cache_size_mb": 512, "cache_policy": "lru"},
}


@pytest.fixture
def encoder() -> VisionEncoder:
    return VisionEncoder(image_size=32, patch_size=8, num_layers=2, hidden_dim=32, num_heads=4, output_dim=12, seed=1)


@pytest.fixture
def combiner() -> MultimodalCombiner:
    return MultimodalCombiner({"text": 8, "image": 12}, output_dim=16, seed=1)


def video() -> VideoEncoder:
    sizes: dict[str, Any] = {"frame_size": 16, "patch_size": 8, "num_layers": 1, "hidden_dim": 16, "num_heads": 2}
    return VideoEncoder(max_frames=4, temporal_layers=1, output_dim=8, seed=1, **sizes)


def pictures(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def settings(encoder: Any) -> MemorySettings:
    assert encoder.memory is not None
    found: MemorySettings = encoder.memory
    return found


class Calls:
    """The sizes of the batches that a network saw."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.sizes: list[int] = []
        network.register_forward_pre_hook(lambda _, args: self.sizes.append(len(args[0])))


def test_the_specifications_configuration_says_what_it_did(
    encoder: VisionEncoder, combiner: MultimodalCombiner
) -> None:
    reports = [one.apply_memory_optimizations(SPECIFIED) for one in (encoder, video(), combiner)]
    for report in reports:
        assert "slower than float32" in report.not_applied["mixed_precision"]
        assert report.not_applied["loss_scaling"] == "mixed precision is not applied"
        assert {"chunk_size", "caching"} < report.applied.keys()
        assert "not applied  mixed_precision" in str(report)
    assert "overlap_chunks" in reports[0].applied
    assert "overlap_chunks" in reports[1].not_applied
    assert "gradient_checkpointing" in reports[2].not_applied, "a combiner has no transformer blocks"


def test_strict_raises_before_anything_is_changed(encoder: VisionEncoder) -> None:
    with pytest.raises(NotAppliedError, match="mixed_precision") as caught:
        encoder.apply_memory_optimizations(SPECIFIED, strict=True)
    assert set(caught.value.reasons) == {"mixed_precision", "loss_scaling"}
    assert encoder.memory is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"cache": {}}, "valid: .*caching"),
        ({"gradient_checkpointing": "yes"}, "expected bool"),
        ({"caching": {"cache_policy": "fifo"}}, "'lru'"),
        ({"batch_processing": {"chunk_size": 0}}, "at least 1"),
        ({"mixed_precision": {"dtype": "int8"}}, "'float16', 'bfloat16'"),
    ],
)
def test_unknown_options_are_errors(encoder: VisionEncoder, config: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        encoder.apply_memory_optimizations(config)


def saved_bytes(encoder: VisionEncoder, x: Tensor) -> tuple[int, Tensor]:
    """What training keeps for the way back, and the gradient."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    encoder.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = encoder(x).square().sum()
    loss.backward()
    gradient = encoder.model.patch_embed.proj.weight.grad
    assert gradient is not None
    return kept, gradient.clone()


def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(encoder: VisionEncoder) -> None:
    encoder.train()
    plain, expected = saved_bytes(encoder, pictures(2))
    encoder.apply_memory_optimizations({"gradient_checkpointing": True})
    less, got = saved_bytes(encoder, pictures(2))
    assert less < 0.5 * plain
    torch.testing.assert_close(got, expected)
    encoder.apply_memory_optimizations({"gradient_checkpointing": False})
    assert saved_bytes(encoder, pictures(2))[0] == plain


def test_bfloat16_is_applied_and_said_to_be_slow(encoder: VisionEncoder, combiner: MultimodalCombiner) -> None:
    for one in (encoder, combiner):
        report = one.apply_memory_optimizations({"mixed_precision": {"dtype": "bfloat16", "loss_scaling": "dynamic"}})
        assert "8 times slower" in report.applied["mixed_precision"]
        assert "range of float32" in report.not_applied["loss_scaling"]
    seen: list[torch.dtype] = []
    encoder.model.head.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    features = encoder.encode(pictures(2)).features
    assert encoder(pictures(2)).dtype == features.dtype == torch.float32
    assert seen == [torch.bfloat16] * 2
    assert combiner.combine({"image": features}).features.dtype == torch.float32
    encoder.apply_memory_optimizations({"mixed_precision": {"enable": False}})
    encoder.encode(pictures(1))
    assert seen[-1] == torch.float32


def test_float16_is_for_gpus() -> None:
    assert precision_obstacle("cuda", "float16") is None
    assert precision_obstacle("cpu", "float16")


def test_loss_scaling_brings_a_scaler_where_float16_is_possible(
    encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encoders_core.memory.precision_obstacle", lambda *_: None)
    report = encoder.apply_memory_optimizations({"mixed_precision": {"dtype": "float16", "loss_scaling": "dynamic"}})
    assert "for the training loop" in report.applied["loss_scaling"]
    scaler = settings(encoder).loss_scaler
    assert isinstance(scaler, torch.amp.GradScaler)
    assert float(scaler.scale(torch.tensor(2.0))) == 2.0 * scaler.get_scale() > 1000.0
    encoder.apply_memory_optimizations({"mixed_precision": {"dtype": "float16", "loss_scaling": "none"}})
    assert settings(encoder).loss_scaler is None


@pytest.mark.parametrize("overlap", [False, True])
def test_chunks_bound_what_is_computed_at_once(encoder: VisionEncoder, overlap: bool) -> None:
    images = [np.random.default_rng(i).integers(0, 256, (20 + i, 40, 3), np.uint8) for i in range(7)]
    expected = encoder.encode(images, return_attention_weights=True)
    encoder.apply_memory_optimizations({"batch_processing": {"chunk_size": 3, "overlap_chunks": overlap}})
    calls = Calls(encoder.model.patch_embed)
    got = encoder.encode(images, return_attention_weights=True)
    assert calls.sizes == [3, 3, 1]
    torch.testing.assert_close(got.features, expected.features)
    assert got.attention_weights is not None
    assert got.attention_weights.shape[0] == 7
    encoder.encode_image(images, batch_size=32)
    assert calls.sizes[3:] == [3, 3, 1]
    assert len(encoder.encode(pictures(0))) == 0


def test_overlap_prepares_the_next_chunk_in_a_thread(encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    names: list[str] = []
    real = type(encoder).preprocess

    def spy(self: VisionEncoder, *args: Any, **options: Any) -> Tensor:
        names.append(threading.current_thread().name)
        return real(self, *args, **options)

    monkeypatch.setattr(VisionEncoder, "preprocess", spy)
    encoder.apply_memory_optimizations({"batch_processing": {"chunk_size": 2, "overlap_chunks": True}})
    encoder.encode(pictures(4))
    assert sum(name.startswith("prepare") for name in names) == 2


def test_chunks_of_features_clips_and_texts(combiner: MultimodalCombiner) -> None:
    chunks = {"batch_processing": {"chunk_size": 2}}
    inputs = {"text": torch.randn(5, 3, 8), "image": torch.randn(5, 12)}
    masks = {"image": torch.tensor([True, False, True, True, False])}
    expected = combiner.encode(inputs, masks=masks, return_attention_scores=True)
    combiner.apply_memory_optimizations(chunks)
    got = combiner.encode(inputs, masks=masks, return_attention_scores=True)
    torch.testing.assert_close(got.features, expected.features)
    assert got.attention_scores is not None
    assert all(len(scores) == 5 for scores in got.attention_scores.values())

    clips, encoder = torch.randn(3, 4, 3, 16, 16), video()
    wanted = encoder.encode(clips).features
    encoder.apply_memory_optimizations(chunks)
    calls = Calls(encoder.tower)
    torch.testing.assert_close(encoder.encode(clips).features, wanted)
    assert calls.sizes == [2, 1]

    text = TextEncoder(vocab_size=50, max_length=8, num_layers=1, hidden_dim=16, num_heads=2, output_dim=8, seed=1)
    text.apply_memory_optimizations(chunks)
    calls = Calls(text.model.blocks[0])
    text.encode(torch.randint(1, 49, (3, 8)))
    assert calls.sizes == [2, 1]


@pytest.mark.parametrize(("fused", "kernel"), [(True, "flash"), (False, "math")])
def test_attention_kernels(encoder: VisionEncoder, fused: bool, kernel: str) -> None:
    encoder.apply_memory_optimizations({"batch_processing": {"memory_efficient_attention": fused}})
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        encoder.encode(pictures(1))
    names = {event.key for event in seen.key_averages() if "_scaled_dot_product" in event.key}
    assert names
    assert all(kernel in name for name in names), names


def test_pictures_come_from_the_cache_until_something_changes(encoder: VisionEncoder, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    batch = [pixels, tmp_path / "one.png", pixels[::-1]]
    expected = encoder.encode(batch).features
    encoder.apply_memory_optimizations({"caching": {"cache_size_mb": 1}})
    calls = Calls(encoder.model.patch_embed)
    for _ in range(2):
        torch.testing.assert_close(encoder.encode(batch).features, expected)
    assert calls.sizes == [3]
    torch.testing.assert_close(encoder.encode([pixels, pixels[:20]]).features[:1], expected[:1])
    assert calls.sizes == [3, 1], "only what is new is computed"
    encoder.encode(batch, normalize_output=False)
    assert calls.sizes[2:] == [3], "other options are other results"
    with torch.no_grad():
        encoder.model.patch_embed.proj.weight.neg_()
    assert not torch.allclose(encoder.encode(batch).features, expected)
    encoder.configure_advanced_settings({"output_projection": {"pooling_type": "mean"}})
    encoder.encode(batch)
    Image.fromarray(255 - pixels).save(tmp_path / "one.png")
    encoder.encode(batch)
    assert calls.sizes[3:] == [3, 3, 1], "weights, manners, a file's content"


def test_cache_size_bounds_what_is_kept_and_off_forgets(encoder: VisionEncoder) -> None:
    encoder.apply_memory_optimizations({"caching": {"cache_size_mb": 0.002, "cache_policy": "lru"}})
    images = list(pictures(6))
    encoder.encode(images)
    cache = settings(encoder).cache
    assert cache is not None
    assert len(cache) == 3, "12 floats and 512 bytes around them, each"
    encoder.encode(images[3:])
    assert cache.hits == 3, "the last used stay"
    encoder.apply_memory_optimizations({"caching": {"enable_feature_caching": False}})
    assert settings(encoder).cache is None


def test_equal_pictures_are_computed_once(encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    expected = encoder.encode([one, other, one, one, other]).features
    encoder.apply_memory_optimizations({"caching": {"enable_feature_caching": True}})
    sizes, real = [], type(encoder).preprocess

    def spy(self: VisionEncoder, images: Any, *args: Any, **options: Any) -> Any:
        sizes.append(len(images))
        return real(self, images, *args, **options)

    monkeypatch.setattr(VisionEncoder, "preprocess", spy)
    torch.testing.assert_close(encoder.encode([one, other, one, one, other]).features, expected)
    torch.testing.assert_close(encoder.encode([other, one]).features, expected[[1, 0]])
    assert sizes == [2]


def test_clips_and_features_are_cached_by_call(combiner: MultimodalCombiner) -> None:
    one, clips = video(), torch.randn(2, 4, 3, 16, 16)
    one.apply_memory_optimizations({"caching": {"cache_size_mb": 1}})
    first = one.encode(clips).features
    first += 1  # what a caller does to a result does not reach the cache
    torch.testing.assert_close(one.encode(clips).features, first - 1)
    combiner.apply_memory_optimizations({"caching": {}})
    for _ in range(3):
        combiner.encode({"image": torch.ones(1, 12)})
    caches = [settings(each).cache for each in (one, combiner)]
    assert [(cache.hits, cache.misses) for cache in caches if cache] == [(1, 1), (2, 1)]


def test_cache_drops_the_least_recently_used_within_its_bytes() -> None:
    cache = FeatureCache(3 * (512 + 40))
    for key in "abc":
        cache.put(key, EncodingResult(features=torch.zeros(1, 10)))
    assert cache.get("a") is not None
    cache.put("d", EncodingResult(features=torch.zeros(1, 10)))
    assert [cache.get(key) is not None for key in "abcd"] == [True, False, True, True]
    assert cache.nbytes <= cache.max_bytes
    cache.put("huge", EncodingResult(features=torch.zeros(1, 1000)))
    assert len(cache) == 3
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)


def test_content_keys_tell_kinds_apart(tmp_path: Path) -> None:
    zeros = np.zeros((2, 2), np.float32)
    contents = [zeros, torch.zeros(2, 2), zeros.reshape(4), zeros.astype(np.int32), [zeros], {"a": zeros}, 0, None]
    keys = [content_key(content, "") for content in contents]
    assert len(set(keys)) == len(contents)
    assert None not in keys
    assert content_key("a text", "", text=True) != content_key("another", "", text=True)
    assert content_key(tmp_path / "absent", "") is None
    assert content_key(object(), "") is None


def test_a_copy_of_an_optimised_encoder_is_whole(encoder: VisionEncoder) -> None:
    encoder.apply_memory_optimizations(SPECIFIED)
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        other.model.patch_embed.proj.weight.neg_()
    assert not torch.allclose(other.encode(pictures(1)).features, encoder.encode(pictures(1)).features)
    assert not torch.allclose(other(pictures(1)), encoder(pictures(1)))
