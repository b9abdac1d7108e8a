"""EncoderWithFallback: ordered backends, one answer."""

import logging
import math
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoders_core.backends.array_ops import activation, erf
from encoders_core.backends.model import ArrayModel, open_numpy
from encoders_core.errors import EncoderError, InputError, OptionError
from encoders_core.fallback import EncoderWithFallback
from encoders_core.models.layers import ACTIVATIONS
from encoders_core.models.vit import VisionTransformer, VitConfig
from encoders_core.vision_encoder import VisionEncoder

SIZES: dict[str, Any] = {"img_size": (32, 24), "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


@pytest.fixture
def encoder() -> VisionEncoder:
    return VisionEncoder(image_size=32, patch_size=8, num_layers=2, hidden_dim=32, num_heads=4, output_dim=12, seed=1)


def floats(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def test_erf_has_float32_precision() -> None:
    x = np.linspace(-5, 5, 2001, dtype=np.float32)
    exact = np.array([math.erf(float(value)) for value in x])
    assert np.abs(erf(np, x) - exact).max() < 5e-7


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_torch(name: str) -> None:
    x = floats(200) * 4
    assert np.abs(activation(np, name, x.numpy()) - ACTIVATIONS[name]()(x).numpy()).max() < 2e-6


@pytest.mark.parametrize(
    "manners",
    [
        {},
        {"num_classes": 7, "final_activation": "tanh", "act": "quick_gelu", "norm_pre": True, "patch_bias": False},
        {"reg_tokens": 2, "swiglu": True, "init_values": 0.3, "no_embed_class": True, "pool": "mean", "fc_norm": True},
        {"class_token": False, "pool": "map", "act": "gelu_tanh", "qkv_bias": False},
        {"pre_layer_norm": False, "final_norm": False, "pool": "max", "position": "none"},
        {"pool": "none", "num_classes": 5, "position": "sinusoidal", "head_bias": False},
    ],
    ids=["plain", "clip", "dinov2", "siglip", "post-norm", "tokens"],
)
@torch.no_grad()
def test_numpy_vit_equals_torch(manners: dict[str, Any]) -> None:
    config = VitConfig(**(SIZES | manners))
    torch.manual_seed(4)
    network = VisionTransformer(config).eval()
    for parameter in network.parameters():  # nothing stays at zero or one, where an error would not show
        parameter.add_(0.2 * torch.randn_like(parameter))
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    forward = open_numpy(ArrayModel(family="vit", config=vars(config), weights=weights, preprocessing={}))
    x = floats(2, 3, 32, 24)
    expected = network(x).numpy()
    assert np.abs(forward(x.numpy()) - expected).max() < 1e-4 * max(1.0, np.abs(expected).max())


def test_numpy_efficientnet_with_trained_weights_equals_torch() -> None:
    x = floats(1, 3, 97, 64)
    expected = EncoderWithFallback("torch").encode_with_fallback(x, normalize_output=False)
    got = EncoderWithFallback("numpy").encode_with_fallback(x, normalize_output=False)
    assert (expected.backend, got.backend) == ("torch", "numpy")
    assert not got.fallback_used, "numpy was what was preferred"
    assert got.features.shape == (1, 1280)
    assert np.abs(got.features - expected.features).max() < 1e-4


def test_preferred_backend_gives_what_encode_gives(encoder: VisionEncoder) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8)
    result = EncoderWithFallback(encoder=encoder).encode_with_fallback(pixels)
    assert np.abs(result["features"] - encoder.encode(pixels).features.numpy()).max() < 1e-6
    assert result["fallback_used"] is result.fallback_used is False
    assert dict(result)["backend"] == "torch"
    with pytest.raises(KeyError):
        result["feature"]


def test_failing_backend_falls_back_to_the_same_features_and_says_so_once(
    encoder: VisionEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    x = floats(3, 3, 32, 32)
    expected = encoder.encode(x).features.numpy()
    robust = EncoderWithFallback("torch", ["numpy"], encoder=encoder)

    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook = encoder.model.register_forward_pre_hook(broken)
    with caplog.at_level(logging.WARNING, "encoders_core.fallback"):
        first, second = robust.encode_with_fallback(x), robust.encode_with_fallback(x)
    assert first.fallback_used
    assert second.fallback_used
    assert np.abs(first.features - expected).max() < 1e-4
    assert first.reasons == {"torch": "RuntimeError: out of memory"}
    assert [record.message for record in caplog.records] == [
        "backend torch failed (RuntimeError: out of memory); trying numpy"
    ]
    hook.remove()
    assert robust.encode_with_fallback(x).backend == "torch", "a batch that failed does not close the backend"


def test_missing_jax_is_a_reason(encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    result = EncoderWithFallback("jax", ("torch", "numpy"), encoder=encoder).encode_with_fallback(floats(1, 3, 32, 32))
    assert (result.backend, result.fallback_used) == ("torch", True)
    assert "pip install jax" in result.reasons["jax"]


@pytest.mark.parametrize("model", ["vit", "efficientnet"])
def test_jax_equals_torch(encoder: VisionEncoder, model: str) -> None:
    pytest.importorskip("jax", reason="jax is not installed: pip install jax")
    x, source = floats(1, 3, 32, 32), encoder if model == "vit" else None
    got = EncoderWithFallback("jax", "numpy", encoder=source).encode_with_fallback(x, normalize_output=False)
    expected = EncoderWithFallback("torch", encoder=source).encode_with_fallback(x, normalize_output=False)
    assert (got.backend, got.fallback_used) == ("jax", False)
    assert np.abs(got.features - expected.features).max() < 1e-4


def test_all_backends_failing_tells_every_reason(encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(EncoderError, match=r"jax: .*pip install jax.*; numpy: without torch expected pictures of"):
        EncoderWithFallback("jax", "numpy", encoder=encoder).encode_with_fallback(floats(1, 3, 40, 40))


def test_wrong_input_and_options_are_the_callers_errors(encoder: VisionEncoder) -> None:
    with pytest.raises(InputError, match="channels"):
        EncoderWithFallback(encoder=encoder).encode_with_fallback(floats(1, 5, 32, 32))
    with pytest.raises(OptionError, match="expected one of torch, jax, numpy, got 'tensorflow'"):
        EncoderWithFallback("tensorflow")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="expected a VisionEncoder"):
        EncoderWithFallback(encoder=torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def test_saved_encoder_works_where_torch_is_missing(encoder: VisionEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    program = """
        import importlib.util, sys
        import numpy as np
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "torch" else real(name, *rest)
        sys.modules["torch"] = None
        from encoders_core import EncoderWithFallback
        folder = sys.argv[1]
        result = EncoderWithFallback(encoder=folder).encode_with_fallback(np.load(folder + "/pixels.npy"))
        assert result.fallback_used and "torch" in result.reasons["torch"], result
        np.save(folder + "/features.npy", result.features)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], check=True, timeout=50)
    got = np.load(tmp_path / "features.npy")
    assert np.abs(got - encoder.encode(pixels).features.numpy()).max() < 1e-4
