"""SQL over small pools: names, joins by position and by uid, incomplete annotations, and what errors say."""

from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from curate.catalog import Catalog
from curate.store import Pool
from schemas.errors import InputError, MissingColumnsError
from tests.curate.pool_builder import SCORE, WORDS, annotate_shard, annotated_pool, fingerprint_of
from tests.pool import make_pool, make_rows, write_shard


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return annotated_pool(tmp_path / "pool")


def rows(pool: Pool, query: str) -> list[tuple[object, ...]]:
    with Catalog(pool) as catalog:
        return catalog.sql(query).fetchall()


def test_label_and_column_work_as_qualified_names(pool: Pool) -> None:
    found = rows(pool, "SELECT shard, row FROM pool WHERE b32.clip_score > 1.005 AND siglip.clip_score > -1.025")
    assert found == [(1, 1), (1, 2)]


def test_bare_names_work_where_only_one_table_has_them(pool: Pool) -> None:
    assert rows(pool, "SELECT count(*) FROM pool WHERE caption_num_words > 2 AND status = 'success'") == [(24,)]
    assert rows(pool, "SELECT count(*) FROM pool WHERE alt_text IS NULL") == [(3,)]


def test_every_row_is_joined_with_its_own_annotation(pool: Pool) -> None:
    found = rows(pool, "SELECT shard, row, b32.clip_score, words.caption_num_words, recap.recaption FROM pool")
    assert len(found) == 36
    for shard, row, score, words, text in found:
        assert score == pytest.approx(shard + row / 100)
        assert (words, text) == (row, f"recaption {shard}-{row}")


def test_an_ambiguous_bare_name_is_answered_with_its_owners(pool: Pool) -> None:
    with pytest.raises(
        InputError, match=r"'clip_score' is a column of several tables; say b32.clip_score or siglip.clip_score"
    ):
        rows(pool, "SELECT clip_score FROM pool")


def test_a_wrong_name_is_answered_with_the_nearest(pool: Pool) -> None:
    with pytest.raises(InputError, match=r"caption_num_word\b.*did you mean caption_num_words"):
        rows(pool, "SELECT caption_num_word FROM pool")
    with pytest.raises(InputError, match=r"did you mean siglip"):
        rows(pool, "SELECT sigl1p.clip_score FROM pool")
    with pytest.raises(InputError, match=r"sampels.*did you mean samples"):
        rows(pool, "SELECT * FROM sampels")


def test_label_views_and_subqueries_and_aliases(pool: Pool) -> None:
    assert rows(pool, "SELECT count(*) FROM b32 JOIN samples USING (uid) WHERE clip_score > 2") == [(11,)]
    assert rows(pool, "SELECT max(p.b32.clip_score) FROM pool p WHERE p.row < 4")[0][0] == pytest.approx(2.03)
    query = "WITH best AS (SELECT uid FROM pool WHERE b32.clip_score > (SELECT avg(b32.clip_score) FROM pool)) SELECT count(*) FROM best"
    assert rows(pool, query) == [(18 - 6 + 6,)]


def test_star_shows_every_label(pool: Pool) -> None:
    with Catalog(pool) as catalog:
        columns = catalog.sql("SELECT * FROM pool").columns
    assert columns[:2] == ["shard", "row"] and {"recaption", "caption_num_words", "alt_text"} <= set(columns)
    assert columns.count("uid") == 1


def test_statements_other_than_select_see_a_flat_pool(pool: Pool) -> None:
    names = [row[0] for row in rows(pool, "DESCRIBE pool")]
    assert {"b32.clip_score", "siglip.clip_score", "caption_num_words"} <= set(names) or "clip_score" in names
    assert rows(pool, "PIVOT pool ON status USING count(*) GROUP BY shard ORDER BY shard")[0][1:] == (1, 1, 10)


def test_a_syntax_error_is_one_message(pool: Pool) -> None:
    with pytest.raises(InputError, match="syntax error"):
        rows(pool, "SELEC 1")


def test_rows_in_another_order_are_aligned_by_uid(pool: Pool) -> None:
    order = [*range(6, 12), *range(6)]
    annotate_shard(pool, 1, "b32", {"clip_score": [1 + row / 100 for row in range(12)]}, SCORE, order=order)
    found = rows(pool, "SELECT row, b32.clip_score FROM pool WHERE shard = 1 ORDER BY row")
    assert found == [(row, pytest.approx(1 + row / 100)) for row in range(12)]


def test_missing_files_are_nulls_in_sql_and_refused_in_a_selection(pool: Pool) -> None:
    parameters = '{"model": "my models/b32", "revision": null}'
    for shard in pool.shards():
        annotate_shard(pool, shard, "b32", {"clip_score": [0.0] * 12}, SCORE, parameters=parameters)
    pool.remove(pool.annotation_path("clip_score", fingerprint_of("b32"), 1))
    assert rows(pool, "SELECT count(*), count(b32.clip_score) FROM pool") == [(36, 24)]
    with Catalog(pool) as catalog, pytest.raises(MissingColumnsError) as error:
        catalog.require_complete(["b32", "words"])
    assert "b32 has no current annotation of 1 of 3 shards (00001)" in str(error.value)
    assert f"winnow annotate --pool {pool.root} 'clip_score:model=my models/b32,label=b32'" in str(error.value)


def test_a_shard_fetched_again_makes_its_annotation_stale(pool: Pool) -> None:
    changed = make_rows(12, seed=99)
    write_shard(pool, 2, changed, shard_size=12)
    with Catalog(pool) as catalog:
        assert catalog.files("b32").missing == (2,)
    assert rows(pool, "SELECT count(b32.clip_score) FROM pool") == [(24,)]


def test_shards_may_carry_different_columns(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=2)
    table = pool.read_table(pool.shard_parquet(1))
    carried = table.add_column(2, pa.field("page", pa.string()), pa.array([f"page {row}" for row in range(12)]))
    carried = carried.add_column(3, pa.field("row", pa.string()), pa.array(["theirs"] * 12))
    pool.commit_table(pool.shard_parquet(1), carried)
    for shard in (0, 1):
        annotate_shard(pool, shard, "b32", {"clip_score": [shard + row / 100 for row in range(12)]}, SCORE)
    found = rows(pool, "SELECT shard, row, page, row_, b32.clip_score FROM pool")
    assert found[3] == (0, 3, None, None, pytest.approx(0.03))
    assert found[12 + 5] == (1, 5, "page 5", "theirs", pytest.approx(1.05))


def test_shards_with_clashing_types_are_named(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=2)
    for shard, values in enumerate((pa.array(["x"] * 12), pa.array([[1]] * 12))):
        table = pool.read_table(pool.shard_parquet(shard))
        pool.commit_table(pool.shard_parquet(shard), table.append_column("extra", values))
    with pytest.raises(InputError, match=r"shards 00000, 00001 .*types that do not go together"):
        rows(pool, "SELECT 1 FROM samples")


def test_gaps_between_shards_keep_their_numbers(tmp_path: Path) -> None:
    pool = Pool(tmp_path / "pool")
    for shard in (0, 4, 7):
        write_shard(pool, shard, make_rows(5, seed=shard))
    assert rows(pool, "SELECT shard, count(*), max(row) FROM samples GROUP BY 1 ORDER BY 1") == [
        (0, 5, 4),
        (4, 5, 4),
        (7, 5, 4),
    ]


def test_pool_relation_gives_operators_their_inputs_in_order(pool: Pool) -> None:
    with Catalog(pool) as catalog:
        relation = catalog.pool_relation({
            "text": "recap.recaption",
            "alt_text": "alt_text",
            "words": "caption_num_words",
        })
        assert relation.columns == ["shard", "row", "uid", "text", "alt_text", "words"]
        table = relation.to_arrow_table()
    assert table["row"].to_pylist() == [*range(12)] * 3
    assert table["text"].to_pylist()[13] == "recaption 1-1"


def test_pool_relation_names_a_missing_column(pool: Pool) -> None:
    with Catalog(pool) as catalog, pytest.raises(MissingColumnsError, match=r"did you mean recap\.recaption"):
        catalog.pool_relation({"text": "recap.recaptoin"})


def test_labels_that_are_one_name_in_sql_are_refused(pool: Pool) -> None:
    annotate_shard(pool, 0, "B32", {"clip_score": [0.0] * 12}, SCORE)
    with pytest.raises(InputError, match="one name in SQL"):
        Catalog(pool)


def test_reserved_labels_are_refused(pool: Pool) -> None:
    annotate_shard(pool, 0, "samples", {"clip_score": [0.0] * 12}, SCORE)
    with pytest.raises(InputError, match="'samples'"):
        Catalog(pool)


def test_a_sandboxed_catalog_reads_the_pool_and_nothing_else(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with Catalog(pool, sandboxed=True) as catalog:
        assert catalog.sql("SELECT count(b32.clip_score) FROM pool").fetchall() == [(36,)]
        with pytest.raises(InputError, match=r"(?i)permission|disabled"):
            catalog.sql(f"SELECT * FROM read_csv('{tmp_path}/secret.csv')").fetchall()


def test_an_object_store_works_like_a_folder(pool: Pool) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(pool.root, "/catalog-pool", recursive=True)
    try:
        assert rows(Pool("memory://catalog-pool"), "SELECT count(*) FROM pool WHERE b32.clip_score > 2") == [(11,)]
    finally:
        memory.rm("/catalog-pool", recursive=True)


def test_an_empty_folder_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="winnow download"):
        Catalog(Pool(tmp_path))


def test_unused_and_unfinished_labels_do_not_matter(pool: Pool) -> None:
    annotate_shard(
        pool, 0, "later", {"caption_num_words": [1] * 12, "caption_language": ["en"] * 12}, WORDS, operator="x"
    )
    pool.remove(pool.annotation_path("x", fingerprint_of("later"), 0))
    assert rows(pool, "SELECT count(*) FROM pool WHERE b32.clip_score >= 0") == [(36,)]
    with pytest.raises(MissingColumnsError, match="winnow annotate"):
        rows(pool, "SELECT count(*) FROM pool WHERE later.caption_num_words >= 0")


def test_the_first_rows_of_an_order_by_shard_or_row(tmp_path: Path) -> None:
    with Catalog(make_pool(tmp_path / "pool")) as catalog:
        query = "SELECT uid, row, url FROM samples WHERE shard = 1 ORDER BY row DESC LIMIT 2"
        assert [row for _, row, _ in catalog.sql(query).fetchall()] == [11, 10]


def test_a_label_named_like_its_column_is_found_by_the_bare_name(tmp_path: Path) -> None:
    """`winnow annotate clip_score` makes the label clip_score with the column clip_score."""
    pool = make_pool(tmp_path / "pool", num_shards=1)
    annotate_shard(pool, 0, "clip_score", {"clip_score": [row / 100 for row in range(12)]}, SCORE)
    with Catalog(pool) as catalog:
        assert catalog.sql("SELECT count(*) FROM pool WHERE clip_score >= 0.05").fetchall() == [(7,)]
        assert catalog.used_labels([catalog.parse("clip_score > 0.3")]) == ["clip_score"]
