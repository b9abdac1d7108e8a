from pathlib import Path

import numpy as np
import pytest
import torch

from encoders_core.draining import drain
from encoders_core.errors import OptionError
from encoders_core.models.efficientnet_lite import EfficientNetLite
from encoders_core.preprocessing import InputSpec
from encoders_core.realtime.frame_encoder import (
    ConvFrameEncoder,
    FrameEncoder,
    dense_steps,
    fingerprint,
    load_frame_encoder,
)
from encoders_core.realtime.frame_gate import GateCalibration
from encoders_core.weights.packaged import EFFICIENTNET_LITE0, load_packaged


@pytest.fixture(scope="module")
def encoder() -> FrameEncoder:
    return load_frame_encoder("efficientnet-lite0")


def frames(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), np.uint8))


def encode(encoder: FrameEncoder, pictures: list[np.ndarray]) -> np.ndarray:
    return drain(encoder.encode([encoder.plan(encoder.new_state(), picture) for picture in pictures]))


def test_features_equal_the_plain_network(encoder: FrameEncoder) -> None:
    from encoders_core.weights.packaged import EFFICIENTNET_LITE0, load_packaged

    plain = EfficientNetLite().eval()
    plain.load_state_dict(load_packaged(EFFICIENTNET_LITE0))
    picture = frames(1)[0]
    x = (torch.from_numpy(picture).permute(2, 0, 1)[None].float() - 127) / 128
    with torch.inference_mode():
        expected = plain.forward_features(x).numpy()
    got = encode(encoder, [picture])
    assert got.shape == (1, encoder.descriptor.dim)
    assert np.linalg.norm(got - expected) < 1e-4 * np.linalg.norm(expected)


def test_cameras_together_equal_each_alone(encoder: FrameEncoder) -> None:
    pictures = frames(3)
    together = encode(encoder, pictures)
    for row, picture in zip(together, pictures, strict=True):
        np.testing.assert_allclose(row, encode(encoder, [picture])[0], rtol=1e-3, atol=1e-4)


def test_plan_is_cold_until_something_was_encoded(encoder: FrameEncoder) -> None:
    state, picture = encoder.new_state(), frames(1)[0]
    first = encoder.plan(state, picture)
    assert (first.cold, first.rows, first.rows_total) == (True, 49, 49)
    list(encoder.encode([first]))
    assert not encoder.plan(state, picture).cold


def test_a_dense_model_has_one_bucket_and_nothing_to_scale(encoder: FrameEncoder) -> None:
    plan = encoder.plan(encoder.new_state(), frames(1)[0])
    assert encoder.buckets == (plan.rows_total,)
    assert plan.row_cap is None
    with pytest.raises(OptionError, match="no gates to scale by"):
        encoder.set_fidelity(encoder.new_state(), 0.7)


def test_dense_steps_know_of_no_camera(encoder: FrameEncoder) -> None:
    picture = frames(1)[0]
    assert np.array_equal(drain(dense_steps(encoder, picture)), encode(encoder, [picture]))


def test_fingerprint_changes_with_all_that_changes_vectors() -> None:
    spec = InputSpec((224, 224))
    weights = {"a": torch.ones(2, 2), "b": torch.zeros(3)}
    same = {"pooling": "mean", "head": "none", "variant": "float32"}
    prints = {
        fingerprint(weights, spec, **same),
        fingerprint({**weights, "b": torch.tensor([0, 0, 1e-7])}, spec, **same),
        fingerprint({"a": weights["a"], "c": weights["b"]}, spec, **same),
        fingerprint(weights, InputSpec((160, 160)), **same),
        fingerprint(weights, InputSpec((224, 224), fit="crop"), **same),
        fingerprint(weights, spec, **{**same, "pooling": "cls"}),
        fingerprint(weights, spec, **{**same, "variant": "int8"}),
    }
    assert len(prints) == 7
    assert all(len(one) == 16 for one in prints)
    assert fingerprint(dict(reversed(weights.items())), spec, **same) in prints


def test_descriptor_says_whether_the_weights_are_trained(encoder: FrameEncoder) -> None:
    random = ConvFrameEncoder(EfficientNetLite(), trained=False, calibration=GateCalibration(1.0, 0.035))
    assert encoder.descriptor.trained
    assert not random.descriptor.trained
    assert random.descriptor.fingerprint != encoder.descriptor.fingerprint
    assert "random weights" in random.descriptor.name


def test_load_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(OptionError, match="unknown frame encoder 'efficentnet': did you mean 'efficientnet-lite0'"):
        load_frame_encoder("efficentnet")


def test_load_with_weights_from_a_file_gives_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(load_packaged(EFFICIENTNET_LITE0), path)
    packaged, own = load_frame_encoder(), load_frame_encoder(weights=path)
    assert own.descriptor.fingerprint == packaged.descriptor.fingerprint


def test_load_with_another_fit_changes_the_fingerprint() -> None:
    squashed, cropped = load_frame_encoder(), load_frame_encoder(fit="crop")
    assert cropped.descriptor.input.fit == "crop"
    assert cropped.descriptor.fingerprint != squashed.descriptor.fingerprint


def test_openvino_gives_the_same_vectors_under_the_same_fingerprint(encoder: FrameEncoder) -> None:
    pytest.importorskip("openvino", reason="the backend needs: pip install 'camvec[openvino]'")
    compiled = load_frame_encoder(backend="openvino")
    assert isinstance(compiled, ConvFrameEncoder)
    assert compiled.descriptor == encoder.descriptor
    for size in (224, 128):
        pictures = [np.ascontiguousarray(picture[:size, :size]) for picture in frames(3)]
        np.testing.assert_allclose(encode(compiled, pictures), encode(encoder, pictures), rtol=1e-4, atol=1e-4)


def test_openvino_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(OptionError, match=r"pip install 'camvec\[openvino\]'"):
        load_frame_encoder(backend="openvino")


def test_a_vit_computes_what_changed_by_torch_alone(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="torch's"):
        load_frame_encoder(str(tmp_path), backend="openvino")
