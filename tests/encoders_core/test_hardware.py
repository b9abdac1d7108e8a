"""Hardware: what is applied is measured, what cannot be is said, and the encoder one started from stays as it was."""

import copy
import importlib.metadata
import importlib.util
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from encoders_core import hardware
from encoders_core.errors import OptionError
from encoders_core.hardware import Comparison, compare, optimize_for_device, optimize_for_hardware, sample_input
from encoders_core.models.packed_linear import PackedLinear, packing_obstacle
from encoders_core.models.vit import VisionTransformer, VitConfig
from encoders_core.multimodal_combiner import MultimodalCombiner
from encoders_core.optimization import NotAppliedError, OptimizationReport
from encoders_core.packing import pack_linears
from encoders_core.quantization import Int8Linear
from encoders_core.text_encoder import TextEncoder
from encoders_core.video_encoder import VideoEncoder
from encoders_core.vision_encoder import VisionEncoder

SMALL: dict[str, Any] = {
    "patch_size": 8,
    "num_layers": 2,
    "hidden_dim": 32,
    "num_heads": 4,
    "output_dim": 12,
    "seed": 1,
}


@pytest.fixture(autouse=True)
def threads() -> Generator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def encoder() -> VisionEncoder:
    return VisionEncoder(image_size=32, **SMALL)


def everyone() -> list[Any]:
    text = TextEncoder(vocab_size=50, max_length=8, num_layers=1, hidden_dim=16, num_heads=2, output_dim=8, seed=1)
    video = VideoEncoder(frame_size=16, max_frames=4, temporal_layers=1, **SMALL)
    return [VisionEncoder(image_size=32, **SMALL), video, text, MultimodalCombiner({"a": 8, "b": 12}, output_dim=16)]


def measured(monkeypatch: pytest.MonkeyPatch, speedup: float, fidelity: float = 0.999) -> None:
    monkeypatch.setattr(hardware, "compare", lambda *_: Comparison(speedup, fidelity))


def report_of(encoder: Any) -> OptimizationReport:
    assert encoder.optimization is not None
    found: OptimizationReport = encoder.optimization
    return found


def test_every_kind_of_encoder_is_measured_on_this_cpu() -> None:
    for encoder in everyone():
        optimized = optimize_for_device(encoder, {"quantization": "int8"}, time_budget_s=0.05)
        report = report_of(optimized)
        said = {**report.applied, **report.not_applied}["quantization"]
        assert "times as fast, cosine at least" in said
        assert (report.speedup is not None) is ("quantization" in report.applied)
        assert compare(encoder, optimized, 0.0).fidelity > 0.99


def test_int8_is_kept_when_it_is_faster(encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 1.5)
    optimized = encoder.optimize_for_device({"quantization": "int8"})
    assert isinstance(optimized.model.layers[0].mlp.fc1, Int8Linear)
    assert report_of(optimized).speedup == 1.5
    assert "1.50 times as fast" in str(report_of(optimized))
    assert not any(isinstance(module, Int8Linear) for module in encoder.modules()), "the one it came from is as before"
    x = sample_input(encoder)
    assert not torch.equal(optimized.encode(x).features, encoder.encode(x).features)
    assert optimized.state_dict().keys() == encoder.state_dict().keys()
    assert optimized.model.head.weight is encoder.model.head.weight, "the weights are shared"


@pytest.mark.parametrize(("speedup", "fidelity"), [(0.8, 1.0), (2.0, 0.9), (2.0, float("nan"))])
def test_int8_is_left_when_it_is_slower_or_wrong(
    encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch, speedup: float, fidelity: float
) -> None:
    measured(monkeypatch, speedup, fidelity)
    optimized = encoder.optimize_for_device({"quantization": "int8"})
    assert not any(isinstance(module, Int8Linear) for module in optimized.modules())
    assert "not worth it here" in report_of(optimized).not_applied["quantization"]
    assert report_of(optimized).speedup is None


def test_packed_encoders_equal_plain_ones() -> None:
    if packing_obstacle() is not None:
        pytest.skip(str(packing_obstacle()))
    swiglu = VisionTransformer(VitConfig(img_size=(32, 32), embed_dim=32, num_heads=4, depth=2, swiglu=True))
    quick = VisionTransformer(VitConfig(img_size=(32, 32), embed_dim=32, num_heads=4, depth=2, act="quick_gelu"))
    x = torch.randn(3, 3, 32, 32)
    for model, inputs in [*((one, sample_input(one)) for one in everyone()), (swiglu.eval(), x), (quick.eval(), x)]:
        packed = copy.deepcopy(model)
        assert pack_linears(packed) > 0
        assert packed.state_dict().keys() == model.state_dict().keys()
        with torch.no_grad():
            torch.testing.assert_close(packed(inputs), model(inputs), atol=1e-5, rtol=1e-5)


def test_of_several_kernels_the_fastest_stays(encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([Comparison(1.3, 1.0), Comparison(2.0, 0.995)])
    monkeypatch.setattr(hardware, "compare", lambda *_: next(found))
    optimized = encoder.optimize_for_device({"packing": "float32", "quantization": "int8"})
    report = report_of(optimized)
    assert report.applied.keys() == {"quantization"}
    assert report.not_applied["packing"].endswith("quantization is faster still")
    assert (report.speedup, report.fidelity) == (2.6, 0.995)
    assert isinstance(optimized.model.layers[0].mlp.fc1, Int8Linear)
    measured(monkeypatch, 1.3)
    packed = encoder.optimize_for_device({"packing": "bfloat16"})
    layer = packed.model.layers[0].mlp.fc1
    assert isinstance(layer, PackedLinear)
    assert (layer.compute, layer.act) == (torch.bfloat16, "gelu")


def test_openvino_computes_the_features_and_torch_the_rest(
    encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, 2.0)
    optimized = encoder.optimize_for_device({"backend": "openvino"})
    if importlib.util.find_spec("openvino") is None:
        assert "pip install 'camvec[openvino]'" in report_of(optimized).not_applied["backend"]
        return
    x = torch.randn(3, 3, 32, 32)
    got, expected = optimized.encode(x).features, encoder.encode(x).features
    assert not torch.equal(got, expected)
    assert torch.nn.functional.cosine_similarity(got, expected).min() > 0.999
    again = optimized.optimize_for_device({"memory_layout": "contiguous"}).encode(x).features
    assert torch.equal(again, got), "a copy runs through OpenVINO too"
    assert torch.equal(optimized.model(x), encoder.model(x)), "with gradients it is torch's"
    larger = torch.randn(1, 3, 48, 48)
    assert torch.equal(optimized.encode(larger).features, encoder.encode(larger).features)
    with torch.no_grad():
        optimized.model.head.weight.neg_()
    moved = optimized.encode(x).features
    assert torch.nn.functional.cosine_similarity(moved, encoder.encode(x).features).min() > 0.999


def test_openvino_gives_each_of_several_threads_its_own_features(
    encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="the backend needs: pip install 'camvec[openvino]'")
    measured(monkeypatch, 2.0)
    optimized = encoder.optimize_for_device({"backend": "openvino"})
    pictures = [torch.randn(1, 3, 32, 32) for _ in range(4)]
    expected = [optimized.encode(one).features for one in pictures]
    with ThreadPoolExecutor(4) as pool:
        for got in [pool.map(lambda one: optimized.encode(one).features, pictures) for _ in range(50)]:
            assert all(map(torch.equal, got, expected))


def test_an_old_openvino_is_a_reason(encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2024.4.0")
    report = report_of(encoder.optimize_for_device({"backend": "openvino"}))
    assert report.not_applied["backend"].startswith("expected openvino 2025.0 or newer, got 2024.4.0")


@pytest.mark.parametrize("int8", [True, False])
def test_openvino_in_int8_is_tried_where_both_are_asked_for(
    encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch, *, int8: bool
) -> None:
    pytest.importorskip("openvino", reason="the backend needs: pip install 'camvec[openvino]'")
    found = iter([1.5, 1.5, 0.9] if int8 else [1.5, 0.9, 1.5])
    monkeypatch.setattr(hardware, "compare", lambda *_: Comparison(next(found), 1.0))
    optimized = encoder.optimize_for_device({"quantization": "int8", "backend": "openvino"})
    report = report_of(optimized)
    assert report.applied["backend"].startswith("in int8: 2 layers" if int8 else "2 layers")
    assert report.not_applied.keys() == {"quantization"} == report.measured_out
    x = torch.randn(3, 3, 32, 32)
    one, three, expected = optimized.encode(x[:1]).features, optimized.encode(x).features, encoder.encode(x).features
    assert torch.nn.functional.cosine_similarity(three, expected).min() > 0.999
    assert torch.nn.functional.cosine_similarity(one, expected[:1]).min() > 0.999
    assert torch.equal(optimized.model(x), encoder.model(x)), "with gradients it is torch's, in float32"


def test_cached_features_of_another_encoder_are_not_taken_over(
    encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, 1.5)
    encoder.apply_memory_optimizations({"caching": {"cache_size_mb": 1}})
    x = sample_input(encoder)
    expected = encoder.encode(x).features
    assert not torch.equal(encoder.optimize_for_device({"quantization": "int8"}).encode(x).features, expected)


def test_kernels_that_are_missing_are_a_reason(encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError("no engine for quantized linear")

    monkeypatch.setattr(Int8Linear, "forward", missing)
    report = report_of(encoder.optimize_for_device({"quantization": "int8"}))
    assert report.not_applied["quantization"] == "this torch cannot: no engine for quantized linear"


def test_int8_layer_is_close_follows_its_weights_and_lets_gradients_through() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    fast, x = Int8Linear.of(linear), torch.randn(5, 3, 64)
    with torch.no_grad():
        for _ in range(2):
            error = (fast(x) - linear(x)).norm() / linear(x).norm()
            assert 0 < error < 0.02
            linear.weight.mul_(3).add_(0.1)
        assert torch.equal(copy.deepcopy(fast)(x), fast(x))
    assert torch.equal(fast(x), linear(x)), "with gradients it is the float layer"
    fast(x).sum().backward()
    assert linear.weight.grad is not None


def test_channels_last_is_measured_too(encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 1.2)
    optimized = encoder.optimize_for_device({"memory_format": "channels_last"})
    last = torch.channels_last
    assert optimized.model.patch_embed.proj.weight.is_contiguous(memory_format=last)
    assert not encoder.model.patch_embed.proj.weight.is_contiguous(memory_format=last)
    x = sample_input(encoder)
    torch.testing.assert_close(optimized.encode(x).features, encoder.encode(x).features)
    back = optimized.optimize_for_device({"memory_layout": "contiguous"})
    assert back.model.patch_embed.proj.weight.is_contiguous()
    assert report_of(back).applied["memory_layout"].startswith("1 tensors")
    combiner = MultimodalCombiner({"a": 8}, output_dim=8)
    told = report_of(combiner.optimize_for_device({"memory_format": "channels_last"}))
    assert told.not_applied["memory_format"] == "there is no layer that it concerns"


def test_bfloat16_on_a_cpu_is_measured_and_float16_refused(
    encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "emulated" in report_of(encoder.optimize_for_device({"mixed_precision": "float16"})).not_applied[
        "mixed_precision"
    ]  # fmt: skip
    measured(monkeypatch, 1.4)
    optimized = encoder.optimize_for_device({"mixed_precision": "bfloat16"})
    assert report_of(optimized).applied["mixed_precision"].startswith("10 layers, measured 1.40")
    error = (optimized.encode(sample_input(encoder)).features - encoder.encode(sample_input(encoder)).features).abs()
    assert 0 < error.max() < 0.05
    assert encoder.memory is None


def test_options_of_memory_reach_the_copy_alone(encoder: VisionEncoder) -> None:
    asked = {"use_flash_attention": False, "gradient_checkpointing": True, "mixed_precision": False}
    optimized = encoder.optimize_for_device(asked)
    assert optimized.memory is not None
    assert (optimized.memory.fused_attention, optimized.memory.gradient_checkpointing) == (False, True)
    assert optimized.memory.autocast is None
    assert report_of(optimized).applied.keys() == asked.keys()
    assert encoder.memory is None


def test_compile_mode_compiles_what_is_on_a_gpu(encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(VisionEncoder, "device", property(lambda _: torch.device("cuda")))
    monkeypatch.setattr(nn.Module, "compile", lambda _, mode: modes.append(mode))
    report = report_of(encoder.optimize_for_device({"compile_mode": "max-autotune"}))
    assert modes == ["max-autotune"]
    assert "max-autotune" in report.applied["compile_mode"]


def test_threads_and_vector_instructions(encoder: VisionEncoder) -> None:
    torch.set_num_threads(2)
    report = report_of(encoder.optimize_for_device({"threading": "auto", "vectorization": True}))
    assert torch.get_num_threads() == 1
    assert {"threading", "vectorization"} == report.applied.keys()
    assert "ATEN_CPU_CAPABILITY" in report_of(encoder.optimize_for_device({"vectorization": False})).not_applied[
        "vectorization"
    ]  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_and_tpu_are_reported_as_missing(encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 1.0)
    gpu = report_of(optimize_for_hardware(encoder, "gpu"))
    assert gpu.not_applied.keys() == {"gpu", "mixed_precision", "compile_mode", "memory_format"}
    assert gpu.applied.keys() == {"use_flash_attention"}
    tpu = report_of(optimize_for_hardware(encoder, "tpu"))
    assert tpu.not_applied.keys() == {"tpu", "mixed_precision", "xla_optimization", "mesh_parallelism"}
    assert "torch_xla" in tpu.not_applied["tpu"]
    assert tpu.applied.keys() == {"gradient_checkpointing"}
    assert encoder.memory is None, "the one it came from is as before"
    auto = report_of(optimize_for_hardware(encoder))
    assert {"threading", "vectorization", "memory_layout"} == auto.applied.keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_strict_raises_and_changes_nothing(encoder: VisionEncoder, device: Any) -> None:
    before = torch.get_num_threads()
    with pytest.raises(NotAppliedError, match=device):
        optimize_for_hardware(encoder, device, strict=True)
    with pytest.raises(NotAppliedError, match="compile_mode"):
        encoder.optimize_for_device({"threading": "auto", "compile_mode": "default"}, strict=True)
    assert torch.get_num_threads() == before
    assert encoder.optimization is None


def test_strict_lets_go_what_was_tried_where_the_best_is_chosen(
    encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, 0.9)
    monkeypatch.setattr(hardware, "packing_obstacle", lambda _: None)
    monkeypatch.setattr(hardware, "openvino_obstacle", lambda _: None)
    found = report_of(optimize_for_hardware(encoder, "cpu", strict=True))
    assert found.measured_out == {"memory_format", "packing", "quantization", "backend"}
    monkeypatch.setattr(hardware, "openvino_obstacle", lambda _: "openvino is not installed")
    with pytest.raises(NotAppliedError, match=r"cannot be applied here: backend: openvino is not installed$"):
        optimize_for_hardware(encoder, "cpu", strict=True)
    with pytest.raises(NotAppliedError, match="not worth it here"):
        encoder.optimize_for_device({"quantization": "int8"}, strict=True)


def test_unknown_options_name_the_valid_ones(encoder: VisionEncoder) -> None:
    with pytest.raises(OptionError, match=r"unknown key 'quantisation'.*did you mean 'quantization'"):
        encoder.optimize_for_device({"quantisation": "int8"})
    with pytest.raises(OptionError, match="'int8', got 'int4'"):
        encoder.optimize_for_device({"quantization": "int4"})
    with pytest.raises(OptionError, match="auto, gpu, tpu, cpu"):
        optimize_for_hardware(encoder, "npu")  # type: ignore[arg-type]
