"""The list of what must never come back: which rows it names, and what is left of a row that it names."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate.forgotten import (
    LIST_FILE,
    MESSAGE,
    PLANNED_COLUMNS,
    Forgotten,
    add_forgotten,
    bury,
    parse_domain,
    read_forgotten,
    url_digest,
)
from curate.store import Pool
from schemas.errors import InputError, StaleDatasetError

URL = "https://example.org/a b.jpg"
UID = "ab" * 16


@pytest.mark.parametrize(
    ("url", "is_same"),
    [
        (URL, True),
        (" https://EXAMPLE.org:443/a%20b.jpg#top ", True),
        ("http://example.org/a b.jpg", True),
        ("https://example.org/a b.jpg?x=1", False),
        ("https://www.example.org/a b.jpg", False),
        ("https://example.org:8443/a b.jpg", False),
        (None, False),
    ],
)
def test_urls_are_the_same_where_they_lead_to_one_picture(url: str | None, is_same: bool) -> None:
    assert Forgotten.of(urls=[URL]).names("0" * 32, url) is is_same


@pytest.mark.parametrize(
    ("domain", "url", "is_named"),
    [
        ("example.com", "https://example.com/x", True),
        ("example.com", "https://a.b.EXAMPLE.com./x", True),
        ("example.com", "https://evil-example.com/x", False),
        ("example.com", "https://example.com.evil.org/x", False),
        ("example.com", "https://evil.org/example.com", False),
        ("b.example.com", "https://example.com/x", False),
        ("b\u00fccher.example", "https://shop.xn--bcher-kva.example/x", True),
        ("xn--bcher-kva.example", "https://B\u00dcCHER.example/x", True),
        ("127.0.0.1", "http://127.0.0.1:8080/x", True),
        ("0.0.1", "http://127.0.0.1/x", False),
        ("example.com", "not a url", False),
    ],
)
def test_a_domain_is_a_host_and_what_is_below_it(domain: str, url: str, is_named: bool) -> None:
    found = Forgotten.of(domains=[domain])
    assert found.names("0" * 32, url) is is_named
    table = pa.table({"uid": ["0" * 32], "url": [url]})
    assert found.find(table, [parse_domain(domain)]).tolist() == [is_named]
    assert found.find(table).tolist() == [is_named]


def test_uids_and_pictures_are_named() -> None:
    digest = hashlib.sha256(b"picture").hexdigest()
    found = Forgotten.of(uids=[UID], sha256=[f" {digest.upper()}"])
    assert found.names(UID, None)
    assert found.names("0" * 32, URL, digest)
    assert not found.names("0" * 32, URL, None)
    table = pa.table({"uid": [UID, "0" * 32, "1" * 32], "sha256": pa.array([None, digest.upper(), None], pa.string())})
    assert found.find(table).tolist() == [True, True, False]


@pytest.mark.parametrize("domain", ["", "org", "a/b", "a b.org", "https://a.org", "\u2603\u0301..org", "a_b@c.org"])
def test_what_is_no_domain_is_refused(domain: str) -> None:
    with pytest.raises(InputError, match="--domain"):
        parse_domain(domain)


def test_the_list_grows_and_names_nobody(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    assert not read_forgotten(pool)
    first = add_forgotten(pool, Forgotten.of(urls=[URL], uids=[UID]))
    second = add_forgotten(pool, Forgotten.of(domains=["example.com"]))
    assert read_forgotten(pool) == second
    assert first.urls == second.urls
    assert "example" not in (tmp_path / LIST_FILE).read_text()
    before = (tmp_path / LIST_FILE).read_bytes()
    assert add_forgotten(pool, first) == second
    assert (tmp_path / LIST_FILE).read_bytes() == before


@pytest.mark.parametrize("content", [b"{", b'{"format": "other"}', b'{"format": "winnow-forgotten", "version": 2}'])
def test_a_damaged_list_stops_everything(tmp_path: Path, content: bytes) -> None:
    pool = Pool(tmp_path)
    pool.commit_bytes(LIST_FILE, content)
    with pytest.raises(StaleDatasetError, match="restore it"):
        read_forgotten(pool)


def test_a_buried_row_has_its_uid_and_nothing_else() -> None:
    table = pa.table({
        "uid": [UID, "0" * 32],
        "num_occurrences": pa.array([3, 1], pa.int32()),
        "tags": [["alice"], ["x"]],
        "vector": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        "key": ["alice", "bob"],
        "url": [URL, "u"],
        "status": ["success", "success"],
        "error_message": pa.array([None, None], pa.string()),
        "source_file_": ["alice.jpg", "b.jpg"],
    }).replace_schema_metadata({"winnow.shard_digest": "d"})
    gone = np.array([True, False])
    buried = bury(table, gone)
    assert buried.schema.equals(table.schema, check_metadata=True)
    assert buried.slice(1).equals(table.slice(1))
    assert {name: value for name, value in buried.to_pylist()[0].items() if value is not None} == {
        "uid": UID,
        "num_occurrences": 3,
        "status": "forgotten",
        "error_message": MESSAGE,
        "source_file_": "alice.jpg",
    }
    assert bury(table, gone, keep=PLANNED_COLUMNS)["source_file_"].to_pylist() == [None, "b.jpg"]
    numbered = table.set_column(4, "key", pa.array(["000012", "000013"]))
    assert bury(numbered, gone)["key"].to_pylist() == ["000012", "000013"]
    assert bury(table, ~gone & gone) is table


def test_what_is_no_url_is_compared_as_it_is() -> None:
    assert url_digest("a/b.tar/0001") == hashlib.sha256(b"a/b.tar/0001").hexdigest()
