import os
from pathlib import Path

import pytest
import torch

from encoders_core.models.efficientnet_lite import EfficientNetLite, FoldedEfficientNetLite, SameConv2d, fold
from encoders_core.preprocessing import InputSpec, normalise
from encoders_core.weights.packaged import EFFICIENTNET_LITE0, load_packaged

SPEC = InputSpec((224, 224), mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


@pytest.fixture(scope="module")
def trained() -> EfficientNetLite:
    network = EfficientNetLite().eval()
    network.load_state_dict(load_packaged(EFFICIENTNET_LITE0))
    return network


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [224, 161])
@torch.inference_mode()
def test_folded_network_equals_plain(trained: EfficientNetLite, packed: bool, size: int) -> None:
    if packed and not fold(trained, (size, size)).packed:
        pytest.skip("this build of torch has no packed convolutions")
    x = torch.randn(2, 3, size, size)
    folded = FoldedEfficientNetLite(trained, packed=packed)
    if packed:
        folded.pack((size, size))
    assert relative_error(folded(x), trained.forward_features(x)) < 1e-4


def test_fold_falls_back_when_the_operator_is_missing(
    trained: EfficientNetLite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(FoldedEfficientNetLite, "pack", missing)
    assert not fold(trained, (224, 224)).packed


@torch.inference_mode()
def test_same_padding_puts_the_odd_pixel_right_and_below() -> None:
    conv = SameConv2d(1, 1, 3, 2, bias=False)
    conv.weight.data.fill_(1.0)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    # As tf.nn.conv2d(padding="SAME") has it: rows 0-2 and 2-4 of a picture with one zero row and column at the end.
    assert conv(x).flatten().tolist() == [45.0, 39.0, 66.0, 50.0]


@torch.inference_mode()
def test_forward_steps_yields_between_blocks_and_leaves_no_trace_while_suspended(trained: EfficientNetLite) -> None:
    folded = fold(trained, (224, 224))
    first, second = torch.randn(1, 3, 224, 224), torch.randn(1, 3, 224, 224)
    with torch.inference_mode(mode=False):
        steps, other = folded.forward_steps(first), folded.forward_steps(second)
        yields = 0
        results: list[torch.Tensor] = []
        while not results:
            try:
                next(steps)
                yields += 1
                next(other)
                assert not torch.is_inference_mode_enabled()
            except StopIteration as done:
                results.append(done.value)
    assert yields == 17
    assert torch.equal(results[0], folded(first))


@torch.inference_mode()
def test_normalise_is_exactly_what_the_weights_were_trained_on() -> None:
    uint8 = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
    x = normalise(uint8, SPEC)
    assert float(x.min()) == float(x.max()) == -127 / 128
    assert float(normalise(uint8 + 255, SPEC).max()) == 1.0


CLIPS = os.environ.get("CAMVEC_CLIPS")
DOG_BREEDS = slice(151, 269)
DAISY = 985


def class_probabilities(network: EfficientNetLite, clip: str) -> torch.Tensor:
    import av
    import cv2

    path = Path(str(CLIPS)) / clip
    if not path.is_file():
        pytest.skip(f"no {clip} in the folder that CAMVEC_CLIPS names")
    with av.open(str(path)) as container:
        pixels = next(container.decode(video=0)).to_ndarray(format="rgb24")
    frame = cv2.resize(pixels, (224, 224), interpolation=cv2.INTER_AREA)
    probabilities: torch.Tensor = network(normalise(torch.from_numpy(frame)[None], SPEC))[0].softmax(0)
    return probabilities


@pytest.mark.skipif(not CLIPS, reason="CAMVEC_CLIPS names no folder of clips")
@torch.inference_mode()
def test_trained_weights_name_what_a_clip_shows(trained: EfficientNetLite) -> None:
    assert float(class_probabilities(trained, "fix_dog_plaza.mp4")[DOG_BREEDS].sum()) > 0.5
    assert int(class_probabilities(trained, "mov_flower_720p.264").argmax()) == DAISY
