"""EncoderBenchmark: the specification's block, what each metric means, and what is said when one cannot be measured."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from encoders_core import (
    DataSet,
    EncoderBenchmark,
    MultimodalCombiner,
    MultimodalSearchEncoder,
    OptionError,
    TextEncoder,
    VideoEncoder,
    VisionEncoder,
)
from encoders_core.benchmarking import metrics
from encoders_core.benchmarking.datasets import read_folder, resolve
from encoders_core.benchmarking.synthetic import motions, textures

TINY: dict[str, Any] = {
    "patch_size": 16,
    "num_layers": 1,
    "hidden_dim": 32,
    "num_heads": 2,
    "output_dim": 16,
    "seed": 0,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def vision() -> VisionEncoder:
    return VisionEncoder(image_size=32, **TINY)


@pytest.fixture(scope="module")
def encoders(vision: VisionEncoder) -> dict[str, Any]:
    combiner = MultimodalCombiner({"text": 24, "image": 16}, output_dim=16, seed=0)
    return {"vision": vision, "video": VideoEncoder(frame_size=32, max_frames=8, **TINY), "multimodal": combiner}


def test_block_of_the_specification(encoders: dict[str, Any], tmp_path: Path) -> None:
    names = {"vision": "imagenet_val_subset", "video": "kinetics_val_subset", "multimodal": "multimodal_test_set"}
    benchmark = EncoderBenchmark(encoders=encoders, test_datasets=names, time_budget_s=1.0)
    results = benchmark.run_comprehensive_benchmark(
        metrics=["encoding_time", "memory_usage", "feature_quality", "throughput", "accuracy_preservation"],
        iterations=100,
    )
    for metric in ("encoding_time", "memory_usage", "throughput", "feature_quality"):
        assert isinstance(results["vision"][metric], float)
    assert 0.0 <= results["video"]["temporal_quality"] <= 1.0
    assert results["multimodal"]["info_preservation"] > 0.5
    assert 0.0 <= results["multimodal"]["alignment_score"] <= 1.0
    vision = results["vision"]
    assert (vision.data_set, vision.stands_for) == ("textures", "imagenet_val_subset")
    assert not vision.trained
    assert 4 <= vision.iterations <= 100
    assert vision.details["encoding_time"]["p50_ms"] <= vision.details["encoding_time"]["p99_ms"]
    with pytest.raises(KeyError, match="no reference"):
        vision["accuracy_preservation"]
    assert "substitute for imagenet_val_subset; the weights are random" in str(results)
    stored = json.loads(results.to_json(tmp_path / "results.json"))
    assert stored == json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results.as_dict()))
    assert stored["encoders"]["vision"]["metrics"]["throughput"] == vision["throughput"]


def test_iterations_are_a_maximum(vision: VisionEncoder) -> None:
    found = EncoderBenchmark({"a": vision}).run_comprehensive_benchmark(["encoding_time", "feature_quality"], 2)["a"]
    assert (found.iterations, found.item_count) == (2, 2)
    assert "not two classes" in found.not_applied["feature_quality"]


def test_reference_itself_is_preserved_and_another_is_not(vision: VisionEncoder) -> None:
    other = VisionEncoder(image_size=32, **{**TINY, "seed": 1})
    benchmark = EncoderBenchmark(
        {"same": vision, "other": other}, references={"same": vision, "other": vision}, time_budget_s=1.0
    )
    results = benchmark.run_comprehensive_benchmark(["accuracy_preservation"], 20)
    assert results["same"]["accuracy_preservation"] == pytest.approx(1.0, abs=1e-5)
    assert results["same"].details["accuracy_preservation"]["knn_overlap"] == 1.0
    assert results["other"]["accuracy_preservation"] < 0.9
    assert results["other"].details["accuracy_preservation"]["knn_overlap"] < 1.0


def test_metric_of_another_kind_is_not_applied_and_says_why(vision: VisionEncoder) -> None:
    found = EncoderBenchmark({"a": vision}).run_comprehensive_benchmark(["temporal_quality", "info_preservation"], 1)
    assert found["a"].not_applied["temporal_quality"] == "an encoder of image sees no order in time"
    assert "no features as input" in found["a"].not_applied["info_preservation"]
    assert "temporal_quality" not in found["a"]


def test_unknown_words_are_named(vision: VisionEncoder) -> None:
    with pytest.raises(OptionError, match=r"unknown key 'fps'.*encoding_time"):
        EncoderBenchmark({"a": vision}).run_comprehensive_benchmark(["fps"])
    with pytest.raises(OptionError, match=r"unknown data set 'cifar'.*textures, digits, imagenet_val_subset, a folder"):
        EncoderBenchmark({"a": vision}, {"a": "cifar"})
    with pytest.raises(OptionError, match="'motions' is not for an encoder of image"):
        EncoderBenchmark({"a": vision}, {"a": "motions"})
    with pytest.raises(OptionError, match="unknown key 'b'"):
        EncoderBenchmark({"a": vision}, {"b": "textures"})


def test_folder_of_classes(vision: VisionEncoder, tmp_path: Path) -> None:
    for label, name in enumerate(("dark", "light")):
        (tmp_path / name).mkdir()
        for number in range(5):
            shade = np.full((40, 40, 3), 200 * label + 5 * number, np.uint8)
            Image.fromarray(shade).save(tmp_path / name / f"{number}.png")
    data = resolve(tmp_path, vision)
    assert data.classes == ("dark", "light")
    assert data.labels == [0, 0, 1, 1, 0, 0, 1, 1, 0, 1]
    found = EncoderBenchmark({"a": vision}, {"a": tmp_path}).run_comprehensive_benchmark(["feature_quality"], 10)["a"]
    assert found["feature_quality"] >= 0.8
    assert found.data_set == str(tmp_path)
    without = EncoderBenchmark({"a": vision}, {"a": tmp_path / "dark"})
    assert (
        "no labels" in without.run_comprehensive_benchmark(["feature_quality"], 4)["a"].not_applied["feature_quality"]
    )


def test_folder_of_features_and_of_pairs(tmp_path: Path) -> None:
    np.save(tmp_path / "text.npy", np.zeros((3, 24), np.float32))
    np.save(tmp_path / "labels.npy", np.array([0, 0, 1]))
    data = read_folder(tmp_path, "features")
    assert list(data.take([0, 2])["text"].shape) == [2, 24]
    assert data.labels == [0, 0, 1]
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text("a black square")
    assert read_folder(tmp_path, "pairs").take([0]) == [(tmp_path / "one.png", "a black square")]


def test_synthetic_sets_repeat_and_any_beginning_is_balanced() -> None:
    pictures, labels, classes = textures()
    assert labels[: 2 * len(classes)] == sorted(list(range(len(classes))) * 2)
    assert np.array_equal(pictures[5], textures()[0][5])
    clips, _, _ = motions(rounds=2)
    assert clips[0].shape == (4, 96, 96, 3)
    assert not np.array_equal(clips[0], clips[0][::-1])


def test_knn_and_probe_see_separate_classes_and_no_others() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = [0, 1] * 20
    noise = torch.randn(40, 8, generator=generator)
    apart = noise + 10.0 * torch.tensor(labels)[:, None]
    assert metrics.knn_accuracy(apart - apart.mean(dim=0), labels)[0] == 1.0
    assert metrics.linear_probe(apart, labels) == 1.0
    assert 0.2 < metrics.linear_probe(noise, labels) < 0.8


def test_order_of_frames_counts_and_their_mean_knows_nothing() -> None:
    clips = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))
    first, backwards, dimmed = clips[:, 0], clips.flip(1)[:, 0], 0.9 * clips[:, 0]
    assert metrics.temporal_order(first, backwards, dimmed)["accuracy"] == 1.0
    mean = clips.mean(dim=1)
    assert metrics.temporal_order(mean, clips.flip(1).mean(dim=1), 0.9 * mean)["accuracy"] == 0.0


def test_alignment_and_information_have_the_ends_that_they_should() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(40, 8, generator=generator), torch.randn(40, 8, generator=generator)
    assert metrics.cross_modal_alignment({"a": one, "b": 2.0 * one})["recall_at_1"] == 1.0
    assert metrics.cross_modal_alignment({"a": one, "b": other})["recall_at_1"] < 0.2
    assert metrics.cross_modal_alignment({"a": torch.ones(4, 2), "b": torch.ones(4, 2)})["recall_at_1"] == 0.0
    kept = metrics.information_preservation(torch.cat([one, other], dim=1), {"a": one})
    assert kept["a"] > 0.9
    assert metrics.information_preservation(one, {"a": other})["a"] < 0.1


@pytest.mark.parametrize(("name", "module", "count"), [("digits", "sklearn", 400), ("photographs", "skimage", 14)])
def test_packaged_sets_are_there_or_say_how_to_get_them(name: str, module: str, count: int) -> None:
    kind = "image" if name == "digits" else "pairs"
    encoder: Any = SimpleNamespace(modalities=("image",) if kind == "image" else ("text", "image"))
    if importlib.util.find_spec(module) is None:
        with pytest.raises(OptionError, match=r"camvec\[datasets\]"):
            resolve(name, encoder)
    else:
        assert len(resolve(name, encoder)) == count


def test_search_encoder_is_scored_on_pairs_and_a_text_encoder_on_sentences(
    vision: VisionEncoder, tmp_path: Path
) -> None:
    search = MultimodalSearchEncoder(vision, TextEncoder.from_pretrained(), embedding_space_dim=16)
    colours = {"a red lighthouse": (200, 30, 30), "the blue sea": (20, 60, 200)}
    for number, (text, colour) in enumerate(colours.items()):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(text)
    benchmark = EncoderBenchmark(
        {"search": search, "text": search.text_encoder}, {"search": tmp_path}, time_budget_s=0.5
    )
    results = benchmark.run_comprehensive_benchmark(["feature_quality"], 24)
    assert results["search"]["alignment_score"] in {0.0, 0.25, 0.5, 0.75, 1.0}
    assert (results["search"].trained, results["text"].trained) == (False, True)
    assert "no labels" in results["search"].not_applied["feature_quality"]
    assert results["text"]["feature_quality"] > results["text"].details["feature_quality"]["chance"]


def test_data_set_of_ones_own(vision: VisionEncoder) -> None:
    pictures = [np.full((32, 32, 3), shade, np.uint8) for shade in (0, 10, 240, 250)]
    data = DataSet(name="shades", kind="image", items=pictures, labels=[0, 0, 1, 1])
    found = EncoderBenchmark({"a": vision}, {"a": data}).run_comprehensive_benchmark(["feature_quality"], 4)["a"]
    assert found.data_set == "shades"
    assert found.stands_for is None
    assert found.details["feature_quality"]["chance"] == 0.5


def test_plot_is_a_picture_or_a_clear_error(vision: VisionEncoder, tmp_path: Path) -> None:
    results = EncoderBenchmark({"a": vision}).run_comprehensive_benchmark(["encoding_time"], 2)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        with pytest.raises(OptionError, match=r"camvec\[plot\]"):
            results.plot(tmp_path / "plot.png")
    else:
        results.plot(tmp_path / "plot.png")
        with Image.open(tmp_path / "plot.png") as picture:
            assert picture.size[0] > 100
