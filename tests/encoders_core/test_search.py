"""MultimodalSearchEncoder as the specification uses it: documents in, hits out, on small encoders and on MiniLM."""

import json
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from encoders_core.errors import InputError, OptionError, WeightsError, WeightsNotFoundError
from encoders_core.multimodal_search import MultimodalSearchEncoder
from encoders_core.text_encoder import TextEncoder
from encoders_core.tokenizer import Tokenizer, TokenizerSettings
from encoders_core.vision_encoder import VisionEncoder

pytest.importorskip("tokenizers", reason="tokenizing texts needs: pip install 'camvec[text]'")
Image = pytest.importorskip("PIL.Image", reason="picture files need: pip install 'camvec[text]'")

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (240, 240, 240)}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "picture", "of", "something", "dark", "bright", *COLOURS]


@pytest.fixture
def vision() -> VisionEncoder:
    return VisionEncoder(image_size=32, patch_size=8, num_layers=2, hidden_dim=32, num_heads=2, output_dim=24, seed=0)


@pytest.fixture
def text(tmp_path: Path) -> TextEncoder:
    from encoders_core.tokenizer_formats import from_wordpiece

    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    tokenizer = Tokenizer(from_wordpiece(tmp_path / "vocab.txt", {}), TokenizerSettings(max_length=16))
    return TextEncoder(
        vocab_size=len(WORDS), max_length=16, num_layers=2, hidden_dim=32, num_heads=4, output_dim=16,
        tokenizer=tokenizer, seed=0,
    )  # fmt: skip


@pytest.fixture
def encoder(vision: VisionEncoder, text: TextEncoder) -> MultimodalSearchEncoder:
    return MultimodalSearchEncoder(
        vision_encoder=vision, text_encoder=text, fusion_method="contrastive_learning", embedding_space_dim=32
    )


def picture(colour: str, seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(-20, 20, (40, 40, 3))
    return np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)


def pairs(each: int = 20) -> list[tuple[str, NDArray[np.uint8]]]:
    return [(f"a picture of something {colour}", picture(colour, seed)) for colour in COLOURS for seed in range(each)]


DOCUMENTS = [{"text": f"something {colour}", "image": picture(colour), "page": i} for i, colour in enumerate(COLOURS)]


def test_the_blocks_of_the_specification_run(encoder: MultimodalSearchEncoder, tmp_path: Path) -> None:
    for colour in COLOURS:
        Image.fromarray(picture(colour)).save(tmp_path / f"{colour}.png")
    documents = [{"text": f"something {c}", "image": str(tmp_path / f"{c}.png")} for c in COLOURS]
    index = encoder.create_search_index(documents)
    results = encoder.search(
        text_query="something blue",
        image_query=Image.open(tmp_path / "blue.png"),
        top_k=5,
        fusion_weight_text=0.6,
        fusion_weight_image=0.4,
    )
    assert len(index) == len(results) == 4
    assert results[0].text == "something blue"
    assert results[0].document is documents[2] or results[0].document == documents[2]
    assert [hit.score for hit in results] == sorted((hit.score for hit in results), reverse=True)


def test_documents_come_back_with_all_they_hold(encoder: MultimodalSearchEncoder) -> None:
    encoder.create_search_index([*DOCUMENTS, {"id": "note", "text": "dark", "page": 9}])
    hit = encoder.search("dark", top_k=1)[0]
    assert (hit.id, hit.document["page"], hit.text) == ("note", 9, "dark")
    assert encoder.search("something green", image_query=picture("green"), top_k=1)[0].id == 1


def test_score_is_the_weighted_mean_of_the_cosines(encoder: MultimodalSearchEncoder) -> None:
    encoder.create_search_index(DOCUMENTS)
    by_text = {hit.id: hit.score for hit in encoder.search("something red")}
    by_image = {hit.id: hit.score for hit in encoder.search(image_query=picture("blue"))}
    both = encoder.search("something red", picture("blue"), fusion_weight_text=3, fusion_weight_image=1)
    for hit in both:
        assert hit.score == pytest.approx(0.75 * by_text[hit.id] + 0.25 * by_image[hit.id], abs=1e-5)
    assert encoder.search("something red", picture("blue"), fusion_weight_image=0)[0].score == pytest.approx(by_text[0])


def test_a_query_that_is_the_document_scores_one(encoder: MultimodalSearchEncoder) -> None:
    encoder.create_search_index([{"text": "something red"}, {"image": picture("green")}])
    assert encoder.search("something red", top_k=1)[0].score == pytest.approx(1.0, abs=1e-5)
    assert encoder.search(image_query=[picture("green")], top_k=1)[0].score == pytest.approx(1.0, abs=1e-5)


def test_fit_brings_pictures_to_their_texts(encoder: MultimodalSearchEncoder) -> None:
    assert not encoder.aligned
    report = encoder.fit(pairs(), epochs=60, learning_rate=0.01, show_progress_bar=False)
    assert report.recall_at_1_after == 1.0 > report.recall_at_1_before
    assert encoder.aligned
    encoder.create_search_index([{"image": picture(c, seed=99), "colour": c} for c in COLOURS])
    for colour in COLOURS:
        hit = encoder.search(f"a picture of something {colour}", top_k=1)[0]
        assert hit.document["colour"] == colour


def test_fit_is_repeatable(vision: VisionEncoder, text: TextEncoder) -> None:
    def fitted() -> MultimodalSearchEncoder:
        encoder = MultimodalSearchEncoder(vision, text)
        encoder.fit([{"text": t, "image": i} for t, i in pairs(4)], epochs=3, seed=5, show_progress_bar=False)
        return encoder

    assert fitted().fingerprint == fitted().fingerprint


def test_an_index_made_before_a_fit_is_refused(encoder: MultimodalSearchEncoder) -> None:
    encoder.create_search_index(DOCUMENTS)
    encoder.fit(pairs(4), epochs=2, show_progress_bar=False)
    with pytest.raises(WeightsError, match=r"the index is of model .*index the documents again"):
        encoder.search("something red")


def test_fingerprint_changes_with_all_that_changes_vectors(vision: VisionEncoder, text: TextEncoder) -> None:
    encoder = MultimodalSearchEncoder(vision, text)
    before = encoder.fingerprint
    assert MultimodalSearchEncoder(vision, text).fingerprint == before
    assert MultimodalSearchEncoder(vision, text, embedding_space_dim=64).fingerprint != before
    vision.configure_advanced_settings({"output_projection": {"pooling_type": "mean"}})
    pooled = encoder.fingerprint
    with torch.no_grad():
        next(vision.parameters()).mul_(2.0)
    assert len({before, pooled, encoder.fingerprint}) == 3


def test_index_is_saved_and_loaded_by_the_same_model_only(encoder: MultimodalSearchEncoder, tmp_path: Path) -> None:
    expected = encoder.create_search_index(DOCUMENTS).search(encoder._query("something red", None, 1, 1))
    assert encoder.index is not None
    encoder.index.save(tmp_path / "index", drop=("image",))
    encoder.index = None
    encoder.load_search_index(tmp_path / "index")
    assert [h.id for h in encoder.search("something red")] == [h.id for h in expected]
    encoder.fit(pairs(4), epochs=2, show_progress_bar=False)
    with pytest.raises(WeightsError, match="its vectors are of model"):
        encoder.load_search_index(tmp_path / "index")


def test_save_and_load_give_the_same_vectors(encoder: MultimodalSearchEncoder, tmp_path: Path) -> None:
    encoder.fit(pairs(4), epochs=2, show_progress_bar=False)
    encoder.save_pretrained(tmp_path / "model")
    loaded = MultimodalSearchEncoder.from_pretrained(tmp_path / "model")
    assert loaded.aligned is encoder.aligned
    assert loaded.fingerprint == encoder.fingerprint
    np.testing.assert_allclose(loaded.encode_text("something red"), encoder.encode_text("something red"), atol=1e-6)  # type: ignore[arg-type]
    np.testing.assert_allclose(loaded.encode_image(picture("red")), encoder.encode_image(picture("red")), atol=1e-6)  # type: ignore[arg-type]
    assert not [path for path in (tmp_path / "model").rglob("*") if path.suffix in (".pt", ".pkl", ".bin")]


def test_usearch_finds_the_same(encoder: MultimodalSearchEncoder) -> None:
    pytest.importorskip("usearch", reason="the approximate backend needs: pip install 'camvec[search]'")
    exact = encoder.create_search_index(DOCUMENTS)
    approximate = encoder.create_search_index(DOCUMENTS, backend="usearch")
    found = [encoder.search("something red", index=index) for index in (exact, approximate)]
    assert [hit.id for hit in found[0]] == [hit.id for hit in found[1]]


def test_embeddings_are_of_unit_length_unless_asked_otherwise(encoder: MultimodalSearchEncoder) -> None:
    texts: Any = encoder.encode_text(["something red", "dark"])
    assert texts.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1.0, atol=1e-5)
    image = encoder.encode_image(picture("red"), convert_to_tensor=True, truncate_dim=8)
    assert tuple(image.shape) == (8,)  # type: ignore[union-attr]
    assert float(torch.as_tensor(image).norm()) == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        encoder.heads.text.weight.mul_(3.0)  # type: ignore[union-attr]
    long: Any = encoder.encode_text("dark", normalize_embeddings=False)
    assert np.linalg.norm(long) == pytest.approx(3.0, abs=1e-4)


def test_without_fusion_the_encoders_are_taken_as_they_are(text: TextEncoder) -> None:
    vision = VisionEncoder(image_size=32, num_layers=1, hidden_dim=32, num_heads=2, output_dim=16, seed=0)
    encoder = MultimodalSearchEncoder(vision, text, "none")
    expected = vision.encode_image(picture("red"), normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode_image(picture("red")), expected, atol=1e-6)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="'none' has nothing to fit"):
        encoder.fit(pairs(1))


def test_unaligned_encoders_are_said_to_be(encoder: MultimodalSearchEncoder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        encoder.create_search_index([{"text": "dark"}])
        assert "not aligned" not in caplog.text
        encoder.create_search_index(DOCUMENTS)
    assert "texts and pictures are not aligned" in caplog.text


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"image": "nowhere.jpg"}, "no such picture file: document 1: 'nowhere.jpg'"),
        ({"page": 3}, r"document 1: expected a 'text', an 'image' or both, got keys \['page'\]"),
        ({"text": " "}, "document 1: expected a 'text', an 'image' or both"),
        ({"text": 7}, "document 1: expected 'text' to be a string, got int"),
        ({"image": np.zeros((2, 8, 8, 3), np.uint8)}, "document 1: expected 'image' to be one picture, got a batch"),
        ("text", "document 1: expected a dictionary, got str"),
    ],
)
def test_documents_that_do_not_fit_are_named(encoder: MultimodalSearchEncoder, document: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder.create_search_index([{"text": "dark"}, document])


def test_a_damaged_picture_is_named(encoder: MultimodalSearchEncoder, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.png' is damaged or no picture"):
        encoder.create_search_index([{"image": tmp_path / "broken.png"}])


def test_queries_that_do_not_fit_are_named(encoder: MultimodalSearchEncoder) -> None:
    with pytest.raises(InputError, match="call create_search_index"):
        encoder.search("dark")
    encoder.create_search_index(DOCUMENTS)
    with pytest.raises(InputError, match="expected text_query, image_query or both"):
        encoder.search()
    with pytest.raises(InputError, match="with a fusion weight above 0"):
        encoder.search("dark", fusion_weight_text=0)
    with pytest.raises(OptionError, match="fusion_weight_image: expected a number of at least 0, got -1"):
        encoder.search("dark", fusion_weight_image=-1)
    with pytest.raises(InputError, match="image_query: expected one picture, got 2"):
        encoder.search(image_query=[picture("red"), picture("blue")])
    with pytest.raises(OptionError, match="k: expected a positive number, got 0"):
        encoder.search("dark", top_k=0)


def test_options_that_do_not_fit_are_named(
    encoder: MultimodalSearchEncoder, vision: VisionEncoder, text: TextEncoder
) -> None:
    with pytest.raises(OptionError, match=r"unknown key 'epoch' \(did you mean 'epochs'\?\)"):
        encoder.fit(pairs(1), epoch=3)
    with pytest.raises(OptionError, match="unknown key 'normalise'"):
        encoder.encode_text("dark", normalise=True)
    with pytest.raises(OptionError, match="unknown key 'normalise'"):
        encoder.encode_image(picture("red"), normalise=True)
    with pytest.raises(OptionError, match="expected one of contrastive_learning, none, got 'clip'"):
        MultimodalSearchEncoder(vision, text, "clip")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="'none' wants one width, got 24 for pictures, 16 for texts"):
        MultimodalSearchEncoder(vision, text, "none")
    with pytest.raises(OptionError, match="embedding_space_dim: expected a positive number, got 0"):
        MultimodalSearchEncoder(vision, text, embedding_space_dim=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"text": "dark"}, "pair 1: expected a 'text' and an 'image', got no 'image'"),
        ({"image": picture("red")}, "pair 1: expected a 'text' and an 'image', got no 'text'"),
    ],
)
def test_pairs_that_do_not_fit_are_named(encoder: MultimodalSearchEncoder, wrong: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder.fit([("dark", picture("red")), wrong])


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """A small random CLIP as transformers saves it, with a vocabulary of single letters."""
    import gzip

    from encoders_core.tokenizer_formats import from_openai_merges

    transformers: ModuleType = pytest.importorskip("transformers", reason="needs: pip install 'camvec[dev]'")
    folder = tmp_path / "clip"
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    with gzip.open(tmp_path / "merges.gz", "wt", encoding="utf-8") as file:
        file.write("#version: 0.2")
    vocabulary = from_openai_merges(tmp_path / "merges.gz").get_vocab()
    end = vocabulary["<|endoftext|>"]
    text = tower | {"vocab_size": len(vocabulary), "max_position_embeddings": 77, "eos_token_id": end}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=tower | {"image_size": 32, "patch_size": 8}, projection_dim=24
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    return folder


def test_clip_is_there_when_it_is_named(clip_folder: Path) -> None:
    encoder = MultimodalSearchEncoder.from_pretrained(clip_folder)
    assert encoder.aligned
    assert encoder.embedding_space_dim == 24
    towers = VisionEncoder.from_pretrained(clip_folder), TextEncoder.from_pretrained(clip_folder)
    score = float(towers[0].similarity(towers[0].encode_image(picture("red")), towers[1].encode_text("red")))  # type: ignore[arg-type]
    encoder.create_search_index([{"image": picture("red")}])
    assert encoder.search("red")[0].score == pytest.approx(score, abs=1e-5)


def test_a_text_tower_alone_is_no_search_model(text: TextEncoder, tmp_path: Path) -> None:
    text.save_pretrained(tmp_path / "text")
    with pytest.raises(OptionError, match="its text tower was not trained with pictures"):
        MultimodalSearchEncoder.from_pretrained(tmp_path / "text")


@pytest.mark.timeout(240)  # encodes a thousand class names
def test_the_offline_default_means_something(tmp_path: Path) -> None:
    try:
        encoder = MultimodalSearchEncoder()
    except WeightsNotFoundError as exc:
        pytest.skip(str(exc))
    assert encoder.aligned
    assert encoder.trained
    encoder.create_search_index(
        [
            {"text": "A cat sitting in a window"},
            {"text": "Mountainous landscape at sunset"},
            {"text": "Children playing in the park"},
        ]
    )
    assert encoder.search("domestic animals indoors", top_k=1)[0].text == "A cat sitting in a window"
    encoder.save_pretrained(tmp_path)
    loaded = MultimodalSearchEncoder.from_pretrained(tmp_path)
    assert loaded.fingerprint == encoder.fingerprint
