"""URL lists in every format, and what is said of rows that cannot be read."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.fetch.lists import UrlList, find_lists, infer_text_type, merge_types
from schemas.errors import InputError


def read(path: Path, **options: str) -> list[dict[str, object]]:
    return [row for item in find_lists(str(path), **options) for table in item.read() for row in table.to_pylist()]


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_csv_with_quotes_newlines_and_words_that_look_like_null(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", 'URL,TEXT\r\nhttp://a/1,NA\r\nhttp://a/2,"x, ""y""\nz"\r\nhttp://a/3,\r\n')
    assert read(path) == [
        {"URL": "http://a/1", "TEXT": "NA"},
        {"URL": "http://a/2", "TEXT": 'x, "y"\nz'},
        {"URL": "http://a/3", "TEXT": None},
    ]


def test_cc3m_is_a_tsv_without_header_where_quotes_are_text(tmp_path: Path) -> None:
    path = written(tmp_path / "cc3m.tsv", '"a" dog\thttp://a/1\nb "cat\thttp://a/2\n')
    assert read(path) == [{"caption": '"a" dog', "url": "http://a/1"}, {"caption": 'b "cat', "url": "http://a/2"}]


def test_tsv_with_header_is_quoted(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tsv", '\ufeffcaption\turl\n"a\tb"\thttp://a/1\n')
    assert read(path) == [{"caption": "a\tb", "url": "http://a/1"}]


def test_csv_without_header_finds_the_url(tmp_path: Path) -> None:
    assert read(written(tmp_path / "a.csv", "http://a/1,dog\n")) == [{"url": "http://a/1", "caption": "dog"}]
    with pytest.raises(InputError, match="3 columns and no header; add a first line"):
        read(written(tmp_path / "b.csv", "http://a/1,dog,3\n"))


def test_jsonl_txt_and_compression(tmp_path: Path) -> None:
    lines = '{"url": "http://a/1", "n": 1}\n\n{"url": "http://a/2", "caption": "x"}\n'
    expected = [{"url": "http://a/1", "n": 1, "caption": None}, {"url": "http://a/2", "n": None, "caption": "x"}]
    assert read(written(tmp_path / "a.jsonl", lines)) == expected
    assert read(written(tmp_path / "b.jsonl.gz", gzip.compress(lines.encode()))) == expected
    assert read(written(tmp_path / "c.txt", "\ufeffhttp://a/1\n\n http://a/2 \n")) == [
        {"url": "http://a/1"},
        {"url": "http://a/2"},
    ]


def test_parquet_keeps_types(tmp_path: Path) -> None:
    table = pa.table({"url": ["http://a"], "boxes": pa.array([[[0.5, 1.0]]], pa.list_(pa.list_(pa.float32())))})
    pq.write_table(table, tmp_path / "a.parquet")
    (found,) = find_lists(str(tmp_path / "a.parquet"))[0].read()
    assert found.schema.equals(table.schema)


def test_folders_globs_lists_and_urls(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "notes.md"):
        written(tmp_path / name, f"http://{name}\n")
    names = [Path(item.path).name for item in find_lists(str(tmp_path))]
    assert names == ["a.txt", "b.txt"]
    assert [Path(item.path).name for item in find_lists(f"{tmp_path}/[ab].txt")] == ["a.txt", "b.txt"]
    assert [Path(item.path).name for item in find_lists([f"{tmp_path}/b.txt", f"file://{tmp_path}/a.txt"])] == [
        "b.txt",
        "a.txt",
    ]
    with pytest.raises(InputError, match="no file matches"):
        find_lists(f"{tmp_path}/*.csv")
    with pytest.raises(InputError, match="does not exist"):
        find_lists(f"{tmp_path}/none.csv")
    with pytest.raises(InputError, match="give --input-format"):
        find_lists(f"{tmp_path}/notes.md")
    assert find_lists(f"{tmp_path}/notes.md", "txt")[0].format == "txt"


def test_unreadable_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a.jsonl:2 is not JSON .*; correct or remove the line"):
        read(written(tmp_path / "a.jsonl", '{"url": "x"}\n{"url": \n'))
    with pytest.raises(InputError, match=r"b.jsonl:1 is a JSON list"):
        read(written(tmp_path / "b.jsonl", "[1]\n"))
    with pytest.raises(InputError, match=r"c.csv: row 3 has 3 columns, expected 2: 'http://b,y,z'"):
        read(written(tmp_path / "c.csv", "url,text\nhttp://a,x\nhttp://b,y,z\n"))
    with pytest.raises(InputError, match=r"d.csv:3 is not utf-8 .*--encoding"):
        read(written(tmp_path / "d.csv", b"url,text\nhttp://a,x\nhttp://b,caf\xe9\n"))
    with pytest.raises(InputError, match=r"e.txt:1 is not utf-8"):
        read(written(tmp_path / "e.txt", b"http://caf\xe9\n"))
    with pytest.raises(InputError, match=r"f.parquet cannot be read as Parquet"):
        read(written(tmp_path / "f.parquet", b"PAR1"))
    with pytest.raises(InputError, match=r"g.csv is empty"):
        read(written(tmp_path / "g.csv", ""))
    with pytest.raises(InputError, match=r"column 'n' mixes types in lines 1 to 2"):
        read(written(tmp_path / "h.jsonl", '{"n": 1}\n{"n": "a"}\n'))
    with pytest.raises(InputError, match=r"column 'url' twice"):
        read(written(tmp_path / "i.csv", "url,url\na,b\n"))


def test_encoding_is_honoured(tmp_path: Path) -> None:
    path = written(tmp_path / "d.csv", b"url,text\nhttp://b,caf\xe9\n")
    assert read(path, encoding="latin-1") == [{"url": "http://b", "text": "café"}]
    assert read(written(tmp_path / "e.txt", b"http://caf\xe9\n"), encoding="latin-1") == [{"url": "http://café"}]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", None], pa.int64()),
        (["1", "2.5", "1e-3"], pa.float64()),
        (["true", "FALSE"], pa.bool_()),
        (["007"], pa.string()),
        (["+1"], pa.string()),
        (["1" * 30], pa.float64()),
        (["a"], pa.string()),
        ([None], pa.null()),
    ],
)
def test_text_columns_get_the_narrowest_type(values: list[str | None], kind: pa.DataType) -> None:
    assert infer_text_type(pa.chunked_array([pa.array(values, pa.string())])) == kind


def test_types_merge() -> None:
    assert merge_types("n", pa.int64(), pa.float64(), is_text=True) == pa.float64()
    assert merge_types("n", pa.int64(), pa.bool_(), is_text=True) == pa.string()
    assert merge_types("n", pa.null(), pa.bool_(), is_text=False) == pa.bool_()
    assert merge_types("n", pa.int32(), pa.int64(), is_text=False) == pa.int64()
    with pytest.raises(InputError, match="column 'n' is int64 in one part of the list and string in another"):
        merge_types("n", pa.int64(), pa.string(), is_text=False)


def test_identity_follows_the_content(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "http://a\n")
    before = UrlList(str(path), "txt").identity()
    assert UrlList(str(written(tmp_path / "b.txt", "http://a\n")), "txt").identity() == before
    assert UrlList(str(written(path, "http://b\n")), "txt").identity() != before
