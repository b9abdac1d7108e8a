"""The bridge over class names: what it knows, and that published vectors give what pictures give."""

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from encoders_core import hardware
from encoders_core.data.imagenet_classes import imagenet_class_kinds, imagenet_class_names
from encoders_core.errors import InputError, OptionError, WeightsNotFoundError
from encoders_core.hardware import Comparison, optimize_for_hardware, sample_input
from encoders_core.multimodal_search import MultimodalSearchEncoder
from encoders_core.realtime.frame_encoder import load_frame_encoder
from encoders_core.search.bridge import ClassNameBridge, class_texts, name_classes
from encoders_core.text_encoder import TextEncoder

pytestmark = pytest.mark.timeout(240)  # the fixture encodes a thousand class names: seconds, minutes on a busy machine
pytest.importorskip("tokenizers", reason="tokenizing texts needs: pip install 'camvec[text]'")


@pytest.fixture(scope="module")
def text_encoder() -> TextEncoder:
    try:
        return TextEncoder.from_pretrained()
    except WeightsNotFoundError as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def bridge(text_encoder: TextEncoder) -> ClassNameBridge:
    try:
        return ClassNameBridge(text_encoder)
    except WeightsNotFoundError as exc:
        pytest.skip(str(exc))


def pictures(count: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)


def logits_of(*names: str) -> Tensor:
    return torch.stack([10.0 * torch.eye(1000)[imagenet_class_names().index(name)] for name in names])


@pytest.mark.parametrize("option", ["packing", "backend"])
def test_its_network_may_run_packed_or_through_openvino(
    bridge: ClassNameBridge, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if option == "backend":
        pytest.importorskip("openvino", reason="the backend needs: pip install 'camvec[openvino]'")
    monkeypatch.setattr(hardware, "compare", lambda *_: Comparison(2.0, 1.0))
    optimized = bridge.optimize_for_device({option: {"packing": "float32", "backend": "openvino"}[option]})
    assert optimized.optimization is not None
    assert option in optimized.optimization.applied
    x = sample_input(bridge)
    with torch.no_grad():
        got, expected = optimized.network.forward_features(x), bridge.network.forward_features(x)
        assert not torch.equal(got, expected)
        assert F.cosine_similarity(got, expected).min() > (0.99999 if option == "packing" else 0.999)
        smaller = torch.randn(1, 3, 96, 96)
        found = [one.network.forward_features(smaller) for one in (optimized, bridge)]
        assert torch.equal(*found), "other sizes are torch's"
    again = copy.deepcopy(optimized)
    with torch.no_grad():
        again.network._conv_head.weight.neg_()
        moved, plain = again.network.forward_features(x), copy.deepcopy(bridge)
        plain.network._conv_head.weight.neg_()
        assert F.cosine_similarity(moved, plain.network.forward_features(x)).min() > 0.999, "weights are watched"
    assert F.cosine_similarity(again.network.forward_features(x), moved).min() > 0.999, "with gradients it is torch's"


def test_bridge_gets_what_helps_on_this_cpu(bridge: ClassNameBridge) -> None:
    threads = torch.get_num_threads()
    try:
        optimized = optimize_for_hardware(bridge)
    finally:
        torch.set_num_threads(threads)
    report = optimized.optimization
    assert report is not None
    assert {"packing", "quantization", "backend"} <= report.applied.keys() | report.not_applied.keys()
    assert F.cosine_similarity(optimized(sample_input(bridge)), bridge(sample_input(bridge))).min() > 0.99


def test_there_are_a_thousand_names_in_the_known_order() -> None:
    names = imagenet_class_names()
    assert len(names) == 1000
    known = {
        0: "tench",
        281: "tabby cat",
        404: "airliner",
        817: "sports car",
        920: "traffic light",
        999: "toilet paper",
    }
    assert {index: names[index] for index in known} == known


def test_kinds_stand_for_names_that_few_people_use() -> None:
    kinds = dict(zip(imagenet_class_names(), imagenet_class_kinds(), strict=True))
    assert kinds["Egyptian Mau"] == "cat"
    assert kinds["vespa"] == "motorcycle"
    assert kinds["umbrella"] is None
    assert "Egyptian Mau, a kind of cat" in class_texts()
    assert "umbrella" in class_texts()


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("a hot drink in a cup", "espresso"),
        ("a pet", "Egyptian Mau"),
        ("somebody rides a motorcycle", "moped"),
        ("road traffic", "traffic light"),
        ("music", "electric guitar"),
        ("work at the computer", "laptop computer"),
    ],
)
def test_a_class_lies_where_people_look_for_it(
    bridge: ClassNameBridge, text_encoder: TextEncoder, query: str, shown: str
) -> None:
    names = ["espresso", "Egyptian Mau", "moped", "traffic light", "electric guitar", "laptop computer"]
    with torch.no_grad():
        vectors = bridge.from_logits(logits_of(*names))
    scores = text_encoder.similarity(text_encoder.encode_text(query, convert_to_tensor=True), vectors)  # type: ignore[arg-type]
    assert names[int(scores.argmax())] == shown


def test_published_vectors_give_the_logits_back(bridge: ClassNameBridge) -> None:
    encoder = load_frame_encoder()
    steps = encoder.encode([encoder.plan(encoder.new_state(), picture) for picture in pictures()])
    try:
        while True:
            next(steps)
    except StopIteration as done:
        features: NDArray[np.float32] = done.value
    norms = np.linalg.norm(features, axis=1)
    published = (features / norms[:, None]).astype(np.float16)  # as it goes over the wire
    got = bridge.published_logits(published, norms, fingerprint=encoder.descriptor.fingerprint)
    with torch.no_grad():
        expected = bridge.network(bridge.transform(list(torch.from_numpy(pictures()).permute(0, 3, 1, 2))))
    torch.testing.assert_close(got, expected, atol=2e-2, rtol=0)


def test_published_vectors_give_what_the_pictures_give(bridge: ClassNameBridge) -> None:
    with torch.no_grad():
        x = bridge.transform(list(torch.from_numpy(pictures()).permute(0, 3, 1, 2)))
        features = bridge.network.forward_features(x).numpy()
    norms = np.linalg.norm(features, axis=1)
    bridged = bridge.from_published(features / norms[:, None], norms)
    assert bridged.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(bridged, axis=1), 1.0, atol=1e-5)
    expected = bridge.encode_image(pictures(), normalize_embeddings=True)
    np.testing.assert_allclose(bridged, np.asarray(expected), atol=1e-4)
    one = bridge.from_published(features[0] / norms[0], norms[0])
    np.testing.assert_allclose(one, bridged[0], atol=1e-5)


def test_float16_on_the_wire_does_not_turn_the_vector(bridge: ClassNameBridge) -> None:
    with torch.no_grad():
        x = bridge.transform(list(torch.from_numpy(pictures()).permute(0, 3, 1, 2)))
        features = bridge.network.forward_features(x).numpy()
    norms = np.linalg.norm(features, axis=1)
    exact = bridge.from_published(features / norms[:, None], norms)
    wire = bridge.from_published((features / norms[:, None]).astype(np.float16), norms.astype(np.float32))
    assert (exact * wire).sum(axis=1).min() > 0.999


def test_encode_image_follows_the_conventions(bridge: ClassNameBridge) -> None:
    assert bridge.output_dim == 384
    assert np.shape(bridge.encode_image(list(pictures()))) == (3, 384)
    assert np.shape(bridge.encode_image(pictures()[0])) == (384,)
    assert isinstance(bridge.encode_image(pictures()[0], convert_to_tensor=True), Tensor)
    assert np.shape(bridge.encode_image([])) == (0, 384)
    assert np.shape(bridge.encode_image(pictures(), truncate_dim=64)) == (3, 64)


def test_bgr_is_understood(bridge: ClassNameBridge) -> None:
    turned: Any = bridge.encode_image(pictures()[..., ::-1], channel_order="bgr")
    np.testing.assert_allclose(turned, np.asarray(bridge.encode_image(pictures())), atol=1e-5)


def test_top_classes_limits_what_is_mixed(text_encoder: TextEncoder, bridge: ClassNameBridge) -> None:
    one = ClassNameBridge(text_encoder, top_classes=1, class_vectors=bridge.class_vectors)
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one.from_logits(logits), one.class_vectors[logits.argmax(dim=1)])
    assert not torch.allclose(one.from_logits(logits), bridge.from_logits(logits))
    with pytest.raises(OptionError, match="top_classes: expected 1 to 1000, got 0"):
        ClassNameBridge(text_encoder, top_classes=0)
    with pytest.raises(InputError, match=r"class_vectors: expected \(1000, 384\), got \(3, 384\)"):
        ClassNameBridge(text_encoder, class_vectors=torch.zeros(3, 384))


def test_guesses_are_named_and_sorted(bridge: ClassNameBridge) -> None:
    guesses = bridge.guess_classes(pictures(2), k=3)
    assert [len(row) for row in guesses] == [3, 3]
    assert all(row == sorted(row, key=lambda guess: -guess.probability) for row in guesses)
    assert name_classes(logits_of("espresso"), k=1)[0][0].name == "espresso"


@pytest.mark.parametrize(
    ("vectors", "norms", "options", "message"),
    [
        (np.ones((2, 1280)), np.ones(3), {}, r"got \(2, 1280\) and \(3,\)"),
        (np.ones((2, 512)), np.ones(2), {}, r"expected unit vectors \(N, 1280\)"),
        (np.ones((1, 1280)), np.ones(1), {"fingerprint": "0" * 16}, "these vectors are of model '0000000000000000'"),
    ],
)
def test_vectors_of_something_else_are_refused(
    bridge: ClassNameBridge, vectors: Any, norms: Any, options: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        bridge.from_published(vectors, norms, **options)


def test_floats_are_refused(bridge: ClassNameBridge) -> None:
    with pytest.raises(InputError, match="pictures of uint8 pixels, got floats"):
        bridge.encode_image(torch.randn(1, 3, 224, 224))


CLIPS = os.environ.get("CAMVEC_CLIPS")
SHOWN = {
    "cars on the motorway": ("fix_highway_720p.mp4", 100),
    "people shopping in a supermarket": ("fix_shop_aisle.gif", 30),
    "a bedroom": ("mov_kids_room.mp4", 100),
    "flowers": ("mov_flower_720p.264", 100),
    "a deer": ("cut_nature_720p.mp4", 250),
    "a truck on the road": ("mov_dashcam_540p.mp4", 100),
    "a meeting in an office": ("fix_meeting_room.gif", 20),
    "a man in a suit": ("fix_person_table.mp4", 300),
    "a bottle": ("fix_bottles.mp4", 500),
}


def frame_of(clip: str, number: int) -> NDArray[np.uint8]:
    av = pytest.importorskip("av", reason="reading clips needs: pip install 'camvec[edge]'")
    path = Path(str(CLIPS)) / clip
    if not path.is_file():
        pytest.skip(f"no {clip} in the folder that CAMVEC_CLIPS names")
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index == number:
                pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
                return pixels
    raise AssertionError(f"{clip} has no frame {number}")


@pytest.mark.skipif(not CLIPS, reason="CAMVEC_CLIPS names no folder of clips")
def test_everyday_queries_find_most_of_the_right_clips(bridge: ClassNameBridge, text_encoder: TextEncoder) -> None:
    search = MultimodalSearchEncoder(bridge, text_encoder)
    search.create_search_index([{"id": clip, "image": frame_of(clip, number)} for clip, number in SHOWN.values()])
    found = {query: search.search(query, top_k=1)[0].id for query in SHOWN}
    right = [query for query, (clip, _) in SHOWN.items() if found[query] == clip]
    assert len(right) >= 7, found
