"""The identity of a sample."""

from hypothesis import given
from hypothesis import strategies as st

from schemas.uid import digest_uids, is_uid, sample_uid


def test_it_is_pinned() -> None:
    assert sample_uid("https://example.org/a.jpg", "a dog") == "e458040faa9a6f0ae70e8059db114f46"


@given(st.text(), st.text(), st.text(), st.text())
def test_pairs_differ_where_their_parts_do(url: str, text: str, other_url: str, other_text: str) -> None:
    same = (url, text) == (other_url, other_text)
    assert (sample_uid(url, text) == sample_uid(other_url, other_text)) == same
    assert is_uid(sample_uid(url, text))


def test_parts_do_not_run_into_each_other() -> None:
    assert sample_uid("ab", "c") != sample_uid("a", "bc")


def test_no_caption_is_an_empty_one() -> None:
    assert sample_uid("u", None) == sample_uid("u", "")


def test_a_lone_surrogate_has_a_uid() -> None:
    assert is_uid(sample_uid("u", "\ud800"))


def test_what_is_no_uid() -> None:
    assert not any(is_uid(text) for text in ("", "a" * 31, "A" * 32, "g" * 32, "a" * 32 + "\n"))


def test_a_digest_depends_on_order() -> None:
    assert digest_uids(["a", "b"]) != digest_uids(["b", "a"])
    assert digest_uids(iter(["a", "b"])) == digest_uids(["a", "b"])
