import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import ConfigError
from streaming.topics import Address, Topics, build, check_id, covers, fewest, parse, slug

ids = st.from_regex(r"[a-z0-9_-]{1,64}", fullmatch=True)
addresses = st.one_of(
    st.builds(Address, ids, st.sampled_from(["availability", "info", "stats", "gap"])),
    st.builds(Address, ids, st.just("model"), st.none(), ids),
    st.builds(Address, ids, st.just("state"), ids),
    st.builds(Address, ids, st.sampled_from(["embedding", "event", "set", "value"]), ids, ids),
)


def test_topics_of_a_node_read_as_documented() -> None:
    topics = Topics("camvec", "edge1")
    assert topics.availability == "camvec/edge1/availability"
    assert topics.gap == "camvec/edge1/event/gap"
    assert topics.state("front") == "camvec/edge1/cam/front/state"
    assert topics.embedding("front", "vit-b") == "camvec/edge1/cam/front/embedding/vit-b"
    assert topics.commands == "camvec/edge1/cam/+/set/#"


@given(root=ids, address=addresses)
def test_parse_is_the_inverse_of_build(root: str, address: Address) -> None:
    assert parse(root, build(root, address)) == address


@given(topic=st.text(max_size=200))
def test_parse_of_any_text_never_raises(topic: str) -> None:
    address = parse("camvec", topic)
    assert address is None or build("camvec", address) == topic


@pytest.mark.parametrize(
    "topic",
    [
        "other/edge1/availability",
        "camvec/edge1",
        "camvec/edge1/cam/front",
        "camvec/edge1/cam/front/state/more",
        "camvec/edge1/cam/Front/state",
        "camvec/edge1/cam/+/state",
        "camvec//info",
        "camvec/edge1/event/gap\n",
    ],
)
def test_parse_of_a_foreign_topic_is_none(topic: str) -> None:
    assert parse("camvec", topic) is None


@given(name=st.text(max_size=200))
def test_slug_of_any_text_is_an_id_and_stays_itself(name: str) -> None:
    made = slug(name)
    assert re.fullmatch(r"[a-z0-9_-]{1,64}", made)
    assert slug(made) == made


def test_slug_keeps_what_can_be_read() -> None:
    assert slug("google/ViT-B 16 (Größe)") == "google-vit-b-16-grosse"


def test_check_id_says_what_was_expected_and_a_usable_spelling() -> None:
    with pytest.raises(
        ConfigError, match=r"expected a node id of 1 to 64 .* for example 'front-door', got 'Front Door'"
    ):
        check_id("a node id", "Front Door")


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        ("a/+/c", "a/b/c", True),
        ("a/#", "a/b/c", True),
        ("a/+", "a/#", False),
        ("a/b/c", "a/+/c", False),
        ("a/+/c", "a/+/c", True),
        ("a/b", "a/b/c", False),
    ],
)
def test_covers_compares_filters(wide: str, narrow: str, *, expected: bool) -> None:
    assert covers(wide, narrow) is expected


def test_fewest_leaves_one_filter_for_each_message() -> None:
    assert fewest({"r/+/cam/+/state", "r/n/cam/front/state", "r/+/info"}) == {"r/+/cam/+/state", "r/+/info"}
