"""What every encoder is as a torch module: compiled, exported, copied through its state, repeatable, of any batch."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoders_core.encoder import Encoder
from encoders_core.multimodal_combiner import MultimodalCombiner
from encoders_core.text_encoder import TextEncoder
from encoders_core.video_encoder import VideoEncoder
from encoders_core.vision_encoder import VisionEncoder

SMALL: dict[str, Any] = {"patch_size": 8, "num_layers": 1, "hidden_dim": 32, "num_heads": 2, "output_dim": 16}
MAKERS: dict[str, Callable[[int], Encoder]] = {
    "vision": lambda seed: VisionEncoder(image_size=16, seed=seed, **SMALL),
    "medical": lambda seed: VisionEncoder.create_specialized(
        "medical_imaging", {"architecture": {"multi_scale_features": True}}, image_size=16, seed=seed, **SMALL
    ),
    "video": lambda seed: VideoEncoder(frame_size=16, max_frames=8, temporal_layers=1, seed=seed, **SMALL),
    "text": lambda seed: TextEncoder(
        vocab_size=50, max_length=16, num_layers=1, hidden_dim=32, num_heads=2, output_dim=16, seed=seed
    ),
    "combiner": lambda seed: MultimodalCombiner({"text": 24, "image": 16}, output_dim=16, seed=seed),
}


def inputs(name: str, batch: int, length: int = 4) -> Any:
    generator = torch.Generator().manual_seed(batch)
    if name == "text":
        return torch.randint(0, 50, (batch, length), generator=generator)
    if name == "combiner":
        return {
            "text": torch.randn(batch, length, 24, generator=generator),
            "image": torch.randn(batch, 16, generator=generator),
        }
    if name == "medical":  # which takes numbers as measured
        return torch.rand(batch, 3, 16, 16, generator=generator)
    shape = (batch, length, 3, 16, 16) if name == "video" else (batch, 3, 16, 16)
    return torch.randn(*shape, generator=generator)


@pytest.fixture(params=MAKERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_compiles_in_one_graph_and_gives_the_same(name: str) -> None:
    encoder = MAKERS[name](1)
    compiled: Any = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(
            _tensor(compiled(inputs(name, 3))), _tensor(encoder(inputs(name, 3))), atol=1e-5, rtol=0
        )


@pytest.mark.soak  # native code takes half a minute to build
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # in a module that the compiler imports
@pytest.mark.skipif(shutil.which("g++") is None, reason="native code needs a C++ compiler: apt-get install g++")
def test_compiles_to_native_code_and_gives_the_same(name: str) -> None:
    encoder = MAKERS[name](1)
    compiled: Any = torch.compile(encoder)
    with torch.no_grad():
        torch.testing.assert_close(
            _tensor(compiled(inputs(name, 3))), _tensor(encoder(inputs(name, 3))), atol=1e-5, rtol=0
        )


def test_compiled_in_place_keeps_its_keys_and_encodes(name: str) -> None:
    encoder, plain = MAKERS[name](1), MAKERS[name](1)
    encoder.compile(backend="aot_eager")
    assert encoder.state_dict().keys() == plain.state_dict().keys()
    ours, theirs = (_tensor(one.encode(inputs(name, 2))) for one in (encoder, plain))  # type: ignore[operator]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_state_dict_carries_everything(name: str) -> None:
    encoder, other = MAKERS[name](1), MAKERS[name](2)
    assert not torch.equal(_tensor(other(inputs(name, 2))), _tensor(encoder(inputs(name, 2))))
    other.load_state_dict(encoder.state_dict(), strict=True)
    assert torch.equal(_tensor(other(inputs(name, 2))), _tensor(encoder(inputs(name, 2))))


def test_one_seed_one_encoder_and_encode_repeats_itself(name: str) -> None:
    before = torch.random.get_rng_state()
    encoder, same = MAKERS[name](1), MAKERS[name](1)
    first = _tensor(encoder.encode(inputs(name, 2)))  # type: ignore[operator]
    assert torch.equal(_tensor(encoder.encode(inputs(name, 2))), first)  # type: ignore[operator]
    assert torch.equal(_tensor(same.encode(inputs(name, 2))), first)  # type: ignore[operator]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", MAKERS)
@given(batch=st.integers(1, 4), length=st.integers(1, 8))
@settings(max_examples=10, deadline=None)
def test_any_batch_and_length_give_finite_vectors(name: str, batch: int, length: int) -> None:
    encoder = ENCODERS.setdefault(name, MAKERS[name](1))
    features = encoder.encode(inputs(name, batch, length)).features  # type: ignore[operator]
    assert features.shape == (batch, 16)
    assert features.dtype == torch.float32
    assert features.isfinite().all()


ENCODERS: dict[str, Encoder] = {}
"""Made once: hypothesis asks for them again and again."""


def _tensor(out: Any) -> Tensor:
    found: Tensor = out if isinstance(out, Tensor) else out.features
    return found
