"""Every code block of the specification as it is written, with assertions on what it promises.

`specification.md` is the owner's text, word for word. Its blocks run in its order in one namespace, the import line and
the placeholders that it leaves to the reader apart; a block that defines a class or function of its own runs once more
with ours in its place.
"""

import ast
import contextlib
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import encoders_core
from encoders_core.optimization import NotAppliedError

pydicom = pytest.importorskip("pydicom", reason="DICOM needs: pip install 'camvec[medical]'")
Image = pytest.importorskip("PIL.Image", reason="picture files need: pip install 'camvec[edge]'")
pytest.importorskip("tokenizers", reason="tokenizing texts needs: pip install 'camvec[text]'")

pytestmark = pytest.mark.timeout(400)  # models of the specification's size: the whole file is measured, not one test

VISION, VIDEO, COMBINER = "1. Vision Encoder", "2. Video Encoder", "3. Multimodal Combiner"
FALLBACK, MEMORY, BENCHMARK = "Fallback Implementations", "Memory Optimization", "Evaluation System"
MEDICAL, REALTIME, SEARCH = "1. Medical Image Processing", "2. Real-Time Video Analysis", "3. Multimodal Search"
HARDWARE = "TPU/GPU Integration"

NEEDS: dict[str, tuple[str, ...]] = {
    VISION: (),
    VIDEO: (VISION,),
    COMBINER: (VISION,),
    FALLBACK: (VISION,),
    MEMORY: (VISION, VIDEO, COMBINER),
    BENCHMARK: (MEMORY,),
    MEDICAL: (VISION,),
    REALTIME: (VIDEO,),
    SEARCH: (VISION,),
    HARDWARE: (MEMORY,),
}
"""The blocks whose variables a block uses."""


class Specification:
    """The blocks by their heading, run when they are asked for, each once, and what they printed."""

    def __init__(self, text: str, folder: Path) -> None:
        self.blocks = dict(
            re.findall(
                r"^#+ ([^\n]+?)(?: \(`\w+\.py`\))?\n(?:(?!^#).)*?```python\n(.*?)```", text, re.MULTILINE | re.DOTALL
            )
        )
        self.printed: dict[str, str] = {}
        self.names: dict[str, Any] = {}
        self._folder = folder

    def run(self, title: str, **placeholders: Any) -> dict[str, Any]:
        """The namespace after the block and those that it needs."""
        for needed in NEEDS[title]:
            if needed not in self.printed:
                self.run(needed, **PLACEHOLDERS.get(needed, dict)())
        if title not in self.printed:
            self.names |= placeholders
            self.printed[title] = self.execute(self.blocks[title], self.names)
        return self.names

    def execute(self, code: str, names: dict[str, Any]) -> str:
        """Run code with nothing changed but the import line; what it prints."""
        code = code.replace("from capibara.core.encoders import", "from encoders_core import")
        with contextlib.chdir(self._folder), contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, "specification.md", "exec"), names)
        return out.getvalue()

    def with_ours(self, title: str, *defined: str, **changes: Any) -> dict[str, Any]:
        """The block once more, without its own definitions of these names, for which ours stand."""
        tree = ast.parse(self.blocks[title])
        dropped = [node for node in tree.body if getattr(node, "name", None) in defined]
        assert [node.name for node in dropped] == list(defined)  # type: ignore[attr-defined]
        tree.body = [node for node in tree.body if node not in dropped]
        names = self.names | {name: getattr(encoders_core, name) for name in defined} | changes
        self.execute(ast.unparse(tree), names)
        return names


def pictures(count: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (120, 160, 3), dtype=np.uint8) for _ in range(count)]


PLACEHOLDERS = {
    FALLBACK: lambda: {"input_tensor": torch.randn(2, 3, 64, 64)},
    MEMORY: lambda: {"large_image_batch": pictures(6) * 6},  # above 32: the block's own function works in chunks
}


@pytest.fixture(scope="module")
def specification(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Specification]:
    threads = torch.get_num_threads()
    text = (Path(__file__).parent / "specification.md").read_text("utf-8")
    yield Specification(text, tmp_path_factory.mktemp("specification"))
    torch.set_num_threads(threads)


@pytest.fixture
def folder(specification: Specification) -> Path:
    return specification._folder


def small_vision() -> encoders_core.VisionEncoder:
    return encoders_core.VisionEncoder(
        image_size=32, patch_size=8, num_layers=2, hidden_dim=32, num_heads=2, output_dim=512, seed=1
    )


def test_every_block_has_its_test(specification: Specification) -> None:
    text = (Path(__file__).parent / "specification.md").read_text("utf-8")
    assert list(specification.blocks) == list(NEEDS)
    assert len(NEEDS) == text.count("```python")


def test_vision_encoder(specification: Specification) -> None:
    names = specification.run(VISION)
    result, printed = names["image_features"], specification.printed[VISION]
    assert "Image features shape: torch.Size([1, 512])\nOutput dimension: 512\n" in printed
    assert "Attention weights shape: torch.Size([1, 12, 12, 197, 197])" in printed
    torch.testing.assert_close(result.features.norm(dim=-1), torch.ones(1))
    torch.testing.assert_close(result.attention_weights.sum(-1), torch.ones(1, 12, 12, 197))
    config = names["vision_encoder"].config
    assert (config.pool, config.final_activation, config.position) == ("cls", "tanh", "learnable")
    assert (config.patch_dropout, config.attn_drop, config.mlp_drop, config.pre_layer_norm) == (0.1, 0.1, 0.1, True)


def test_video_encoder(specification: Specification) -> None:
    names = specification.run(VIDEO)
    result, printed = names["video_features"], specification.printed[VIDEO]
    assert "Video features shape: torch.Size([1, 512])\nTemporal attention shape: torch.Size([1, 32])" in printed
    torch.testing.assert_close(result.features.norm(dim=-1), torch.ones(1))
    torch.testing.assert_close(result.temporal_attention.sum(-1), torch.ones(1))
    config = names["video_encoder"].config
    assert (config.temporal.kind, config.temporal.position, config.temporal.max_distance) == (
        "transformer", "sinusoidal", 64,
    )  # fmt: skip
    assert (config.sampling.strategy, config.sampling.adaptive_threshold) == ("uniform", 0.8)
    assert (config.optical_flow, config.motion_attention, config.pooling) == (False, True, "attention")
    assert names["video_encoder"].transform.interpolation == "bilinear"


def test_multimodal_combiner(specification: Specification) -> None:
    names = specification.run(COMBINER)
    assert "Fused features shape: torch.Size([1, 512])" in specification.printed[COMBINER]
    scores = names["fused_features"].attention_scores
    assert len([pair for pair in scores if "text" in str(pair)]) >= 3, "text looks at all others"
    config = names["multimodal_combiner"].config
    assert (config.num_heads, config.temperature, config.learnable_temperature) == (8, 1.0, True)
    assert (config.cross_attention, config.symmetric, config.residual) == (True, True, True)
    assert (config.layer_norm, config.dropout, config.final_projection) == (True, 0.1, True)


def test_fallback_as_written(specification: Specification) -> None:
    result = specification.run(FALLBACK, **PLACEHOLDERS[FALLBACK]())["result"]
    assert result["fallback_used"] is True
    assert result["features"].shape == (2, 3, 64)


def test_fallback_with_ours(specification: Specification) -> None:
    specification.run(FALLBACK, **PLACEHOLDERS[FALLBACK]())
    result = specification.with_ours(FALLBACK, "EncoderWithFallback", input_tensor=torch.randn(2, 3, 64, 64))["result"]
    assert result["features"].shape == (2, 1280)
    assert (result["fallback_used"], result.backend) == (False, "torch"), "the CPU is no reason to fall back"
    by_numpy = encoders_core.EncoderWithFallback(preferred_backend="numpy")
    x = torch.randn(1, 3, 64, 64)
    both = [encoder.encode_with_fallback(x)["features"] for encoder in (encoders_core.EncoderWithFallback(), by_numpy)]
    np.testing.assert_allclose(both[0], both[1], atol=1e-4)


def test_memory_optimization_as_written(specification: Specification) -> None:
    names = specification.run(MEMORY, **PLACEHOLDERS[MEMORY]())
    encoder, result = names["vision_encoder"], names["efficient_result"]
    assert result.features.shape == (36, 512)
    torch.testing.assert_close(result.features[:6], result.features[6:12])
    memory = encoder.memory
    assert (memory.chunk_size, memory.overlap_chunks, memory.fused_attention) == (8, True, True)
    assert memory.cache.hits == 20, "of three chunks of 16, 16 and 4 the second and third hold nothing new"
    assert encoder.memory.gradient_checkpointing
    for one in (names["vision_encoder"], names["video_encoder"], names["multimodal_combiner"]):
        assert one.memory.cache.max_bytes == 512_000_000
        report = one.apply_memory_optimizations(names["memory_config"])
        assert "gradient_checkpointing" in report.applied | report.not_applied
        assert "float16" in report.not_applied["mixed_precision"], "said, not pretended"
        assert "mixed precision is not applied" in report.not_applied["loss_scaling"]
        with pytest.raises(NotAppliedError, match="float16"):
            one.apply_memory_optimizations(names["memory_config"], strict=True)


def test_memory_efficient_encoding_with_ours(specification: Specification) -> None:
    specification.run(MEMORY, **PLACEHOLDERS[MEMORY]())
    encoder, batch = small_vision(), pictures(40)
    names = specification.with_ours(
        MEMORY, "memory_efficient_encoding", vision_encoder=encoder, large_image_batch=batch
    )
    torch.testing.assert_close(names["efficient_result"].features, encoder.encode(batch).features)


def test_evaluation_system(specification: Specification) -> None:
    names = specification.run(BENCHMARK)
    results, printed = names["benchmark_results"], specification.printed[BENCHMARK]
    for title in ("VISION_ENCODER", "VIDEO_ENCODER", "MULTIMODAL_COMBINER"):
        assert f"\n{title}:\n" in printed
    for summary in names["performance_summary"].values():
        assert all(isinstance(value, float | int) and np.isfinite(value) for value in summary.values())
    vision = names["performance_summary"]["vision_encoder"]
    assert vision["avg_encoding_time_ms"] > 1, "a ViT-B/16"
    assert vision["peak_memory_gb"] > 0.3, "its weights alone"
    assert 0 <= vision["quality_score"] <= 1
    assert results["vision"].stands_for == "imagenet_val_subset", "a small substitute, and said to be one"
    assert 0 < results["vision"].iterations <= 100
    assert "accuracy_preservation" in results["vision"].not_applied, "no reference was given"


def test_medical_image_processing(specification: Specification, folder: Path) -> None:
    files = Path(pydicom.__file__).parent / "data" / "test_files"
    shutil.copy(files / "MR_small.dcm", folder / "brain_scan.dcm")
    names = specification.run(MEDICAL, load_dicom_image=encoders_core.load_dicom_image)
    result = names["medical_features"]
    assert result.features.shape == (1, 512)
    assert result.attention_maps.shape == (1, 28, 28), "patches half as wide"
    assert result.patch_features.shape == (1, 28, 28, 768)
    assert result.scale_features.shape == (1, 2, 512)
    assert 0 < float(result.confidence) <= 1
    assert all(0 <= r.left < r.right <= 64 and 0 <= r.top < r.bottom <= 64 for r in result.regions[0])


def test_real_time_video_analysis(specification: Specification) -> None:
    processed: list[Any] = []
    frames = np.random.default_rng(0).integers(0, 256, (6, 120, 160, 3), dtype=np.uint8)
    names = specification.run(
        REALTIME,
        get_camera_stream=lambda: iter((frames[:3], frames[3:])),
        process_realtime_features=processed.append,
    )
    assert [batch.features.shape for batch in processed] == [(3, 1280), (3, 1280)]
    assert all(batch.temporal.shape == (3, 1280) for batch in processed)
    assert names["realtime_encoder"].budget_ms == 100


def test_multimodal_search(specification: Specification, folder: Path) -> None:
    names = ("cat_window.jpg", "mountain_sunset.jpg", "children_park.jpg", "query_cat.jpg")
    for name, pixels in zip(names, pictures(4), strict=True):
        Image.fromarray(pixels).save(folder / name)
    text = encoders_core.TextEncoder.from_pretrained()
    found = specification.run(SEARCH, text_encoder=text, load_image=Image.open)["search_results"]
    assert len(found) == 3
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
    lines = specification.printed[SEARCH].splitlines()
    assert re.fullmatch(r"Score: -?\d\.\d{3} - \w.*", lines[0])
    assert {line.split(" - ")[1] for line in lines} == {
        "A cat sitting in a window", "Mountainous landscape at sunset", "Children playing in the park",
    }  # fmt: skip


def test_hardware_as_written(specification: Specification) -> None:
    names = specification.run(HARDWARE)
    tpu, gpu = names["optimized_vision"].optimization, names["optimized_video"].optimization
    assert {"xla_optimization", "mesh_parallelism"} <= tpu.not_applied.keys()
    assert "torch_xla" in tpu.not_applied["xla_optimization"]
    assert "gradient_checkpointing" in tpu.applied
    if not torch.cuda.is_available():
        assert "on the CPU" in gpu.not_applied["compile_mode"]
    assert "use_flash_attention" in gpu.applied
    auto = names["optimized_multimodal"].optimization
    assert {"threading", "vectorization", "memory_layout"} <= auto.applied.keys()
    assert "quantization" in auto.applied | auto.not_applied


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is missing is there")
@pytest.mark.parametrize("device", ["tpu", "gpu"])
def test_hardware_that_is_missing_raises_under_strict(specification: Specification, device: str) -> None:
    names = specification.run(HARDWARE)
    with pytest.raises(NotAppliedError):
        encoders_core.optimize_for_hardware(small_vision(), device, strict=True)  # type: ignore[arg-type]
    options = {"tpu": {"xla_optimization": True}, "gpu": {"compile_mode": "reduce-overhead"}}
    with pytest.raises(NotAppliedError):
        names["vision_encoder"].optimize_for_device(options[device], strict=True)


def test_hardware_with_ours(specification: Specification) -> None:
    specification.run(HARDWARE)
    video = encoders_core.VideoEncoder(frame_size=32, patch_size=8, num_layers=1, hidden_dim=32, num_heads=2, seed=1)
    names = specification.with_ours(
        HARDWARE, "optimize_for_hardware", vision_encoder=small_vision(), video_encoder=video
    )
    assert "torch_xla is not installed" in names["optimized_vision"].optimization.not_applied["tpu"]
    if not torch.cuda.is_available():
        assert "no CUDA device" in names["optimized_video"].optimization.not_applied["gpu"]
    assert "threading" in names["optimized_multimodal"].optimization.applied
