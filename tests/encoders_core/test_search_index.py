"""VectorIndex: what goes in, what is found and in which order, what is refused, what stands on disk."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from encoders_core.errors import InputError, OptionError, WeightsError, WeightsNotFoundError
from encoders_core.search.index import VectorIndex


def rows(count: int, ndim: int = 8, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, ndim)).astype(np.float32)


@pytest.fixture(params=["exact", "usearch"])
def backend(request: pytest.FixtureRequest) -> Any:
    if request.param == "usearch":
        pytest.importorskip("usearch", reason="the approximate backend needs: pip install 'camvec[search]'")
    return request.param


def filled(backend: Any, count: int = 50) -> VectorIndex:
    index = VectorIndex(8, backend=backend)
    index.add(list(range(count)), rows(count), [{"text": f"document {i}"} for i in range(count)])
    return index


def test_search_finds_the_nearest_first(backend: Any) -> None:
    index, query = filled(backend), rows(1, seed=9)[0]
    query /= np.linalg.norm(query)
    unit = rows(50) / np.linalg.norm(rows(50), axis=1, keepdims=True)
    hits = index.search(query, 5)
    assert [hit.id for hit in hits] == np.argsort(-(unit @ query))[:5].tolist()
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(unit @ query)[::-1][:5], atol=1e-6)
    assert hits[0].text == f"document {hits[0].id}"
    assert hits[0].document is hits[0].payload


def test_search_of_a_vector_finds_itself_with_score_one(backend: Any) -> None:
    vector = rows(50)[7]
    best = filled(backend).search(vector / np.linalg.norm(vector), 1)[0]
    assert best.id == 7
    assert best.score == pytest.approx(1.0, abs=1e-6)


def test_short_results_are_shorter(backend: Any) -> None:
    assert len(filled(backend, 3).search(rows(1)[0], 10)) == 3
    assert VectorIndex(8, backend=backend).search(rows(1)[0]) == []


def test_ties_are_broken_by_id(backend: Any) -> None:
    index = VectorIndex(2, backend=backend)
    index.add(["b", 3, "a", 1, 2], np.tile([[1.0, 0.0]], (5, 1)))
    assert [hit.id for hit in index.search([1.0, 0.0], 4)] == [1, 2, 3, "a"]


def test_adding_an_id_again_replaces_it(backend: Any) -> None:
    index = filled(backend)
    index.add([7], -rows(50)[7:8], [{"text": "new"}])
    assert len(index) == 50
    assert index.search(rows(50)[7], 50)[-1].id == 7
    assert index.search(-rows(50)[7], 1)[0].text == "new"


def test_removed_vectors_are_not_found(backend: Any) -> None:
    index = filled(backend)
    index.remove([0, 49, 20])
    assert len(index) == 47
    assert 20 not in index
    assert 21 in index
    assert not {hit.id for hit in index.search(rows(1)[0], 50)} & {0, 49, 20}
    for key in (1, 21, 48):  # what moved into the gaps is still itself
        assert index.search(rows(50)[key], 1)[0].text == f"document {key}"


@given(st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.integers(0, 9), st.integers(0, 99)), max_size=30))
@settings(max_examples=60, deadline=None)
def test_index_is_a_dictionary_of_vectors(steps: list[tuple[str, int, int]]) -> None:
    index, model = VectorIndex(8), dict[int, NDArray[np.float32]]()
    for step, key, seed in steps:
        if step == "add":
            index.add([key], rows(1, seed=seed))
            model[key] = rows(1, seed=seed)[0]
        elif key in model:
            index.remove([key])
            del model[key]
    query = rows(1, seed=1000)[0]
    expected = {key: float(v @ query / np.linalg.norm(v)) for key, v in model.items()}
    found = {hit.id: hit.score for hit in index.search(query, 10)}
    assert found == pytest.approx(expected, abs=1e-5)


def test_usearch_finds_what_the_exact_search_finds() -> None:
    pytest.importorskip("usearch", reason="the approximate backend needs: pip install 'camvec[search]'")
    exact, approximate = VectorIndex(32), VectorIndex(32, backend="usearch")
    for index in (exact, approximate):
        index.add(list(range(2000)), rows(2000, 32))
    queries = rows(50, 32, seed=3)
    pairs = zip(exact.search_batch(queries), approximate.search_batch(queries), strict=True)
    shared = [len({h.id for h in a} & {h.id for h in b}) / 10 for a, b in pairs]
    assert np.mean(shared) > 0.95


def test_usearch_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(OptionError, match=r"pip install 'camvec\[search\]'"):
        VectorIndex(8, backend="usearch")


def test_filter_chooses_by_payload(backend: Any) -> None:
    hits = filled(backend).search(rows(1)[0], 5, filter=lambda payload: payload["text"].endswith("1"))
    assert {hit.id for hit in hits} == {1, 11, 21, 31, 41}


def test_tensors_are_taken(backend: Any) -> None:
    index = VectorIndex(8, backend=backend)
    index.add(["one"], torch.from_numpy(rows(1)).requires_grad_())
    assert index.search(torch.from_numpy(rows(1)[0]))[0].id == "one"


def test_save_and_load_give_the_same_hits(backend: Any, tmp_path: Path) -> None:
    index = filled(backend)
    index.model = "abc"
    index.remove([3])
    index.save(tmp_path)
    loaded = VectorIndex.load(tmp_path, model="abc", backend=backend)
    query = rows(1, seed=4)[0]
    assert [(h.id, h.text) for h in loaded.search(query)] == [(h.id, h.text) for h in index.search(query)]
    assert {path.name for path in tmp_path.iterdir()} == {"index.json", "vectors.safetensors"}


def test_empty_index_is_saved_and_loaded(tmp_path: Path) -> None:
    VectorIndex(8).save(tmp_path)
    assert len(VectorIndex.load(tmp_path)) == 0


def test_load_refuses_vectors_of_another_model(tmp_path: Path) -> None:
    VectorIndex(8, model="abc").save(tmp_path)
    with pytest.raises(WeightsError, match="of model 'abc', the encoder here is 'def'"):
        VectorIndex.load(tmp_path, model="def")


def test_load_says_what_is_wrong_on_disk(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match="no index there"):
        VectorIndex.load(tmp_path)
    filled("exact").save(tmp_path)
    content = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(content | {"ids": [1, 2], "payloads": [{}, {}]}))
    with pytest.raises(WeightsError, match="do not belong together"):
        VectorIndex.load(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps(content | {"format": "other"}))
    with pytest.raises(WeightsError, match="expected an index of format"):
        VectorIndex.load(tmp_path)


def test_payloads_that_are_no_json_are_named_or_dropped(tmp_path: Path) -> None:
    index = VectorIndex(8)
    index.add(["one"], rows(1), [{"text": "kept", "image": np.zeros(3)}])
    with pytest.raises(InputError, match=r"document 'one': 'image' is a ndarray.*drop=\('image',\)"):
        index.save(tmp_path)
    index.save(tmp_path, drop=("image",))
    assert VectorIndex.load(tmp_path).search(rows(1)[0])[0].payload == {"text": "kept"}


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        ([1, 2], [[1.0] * 8, [0.0] * 8], "vector of id 2 is zero or not finite"),
        (["x"], [[float("nan")] * 8], "vector of id 'x' is zero or not finite"),
        ([1], [[1.0] * 7], r"expected vectors \(1, 8\), got \(1, 7\)"),
        ([1, 1], [[1.0] * 8] * 2, "every id once, got 1 twice"),
        ([1.5], [[1.0] * 8], "whole numbers or strings, got 1.5"),
    ],
)
def test_vectors_that_do_not_fit_are_named_and_nothing_is_added(ids: Any, vectors: Any, message: str) -> None:
    index = VectorIndex(8)
    with pytest.raises(InputError, match=message):
        index.add(ids, vectors)
    assert len(index) == 0


def test_queries_and_options_that_do_not_fit_are_named() -> None:
    index = filled("exact")
    with pytest.raises(InputError, match=r"expected a query \(8,\) of finite numbers, got \(7,\)"):
        index.search([1.0] * 7)
    with pytest.raises(InputError, match="finite"):
        index.search([float("nan")] * 8)
    with pytest.raises(OptionError, match="k: expected a positive number, got 0"):
        index.search([1.0] * 8, 0)
    with pytest.raises(InputError, match="no vector with id 99"):
        index.remove([1, 99])
    assert 1 in index
    with pytest.raises(InputError, match="as many payloads as ids"):
        index.add([1], rows(1), [{}, {}])
    with pytest.raises(OptionError, match="expected one of exact, usearch, got 'faiss'"):
        VectorIndex(8, backend="faiss")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="ndim"):
        VectorIndex(0)
