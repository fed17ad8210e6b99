"""What is planned: order, phases, identities along the chain."""

from pathlib import Path

import pytest

from curate.annotate import annotate
from curate.executor import Executor
from curate.operator import Operator
from curate.operators.caption_stats import CaptionStats
from curate.operators.clip_score import ClipScore
from curate.operators.concept_balance import ConceptBalance
from curate.operators.exact_dedup import ExactDedup
from curate.operators.language import Language
from curate.operators.metadata_match import MetadataMatch
from curate.plan import Planned, label_targets, make_plan
from curate.store import Pool
from schemas.errors import InputError, MissingColumnsError
from schemas.sample import sample_schema
from tests.model import make_checkpoint


def plan(pool: Pool, *operators: Operator) -> dict[str, Planned]:
    return {planned.labels[0]: planned for planned in make_plan(pool, operators, sample_schema().names)}


def test_inputs_come_before_their_readers(tmp_path: Path) -> None:
    model = str(make_checkpoint(tmp_path / "model"))
    found = plan(Pool(tmp_path), ClipScore(model=model), CaptionStats())
    assert list(found) == ["clip_embedding", "clip_text_embedding", "clip_score", "caption_stats"]
    score = found["clip_score"]
    assert score.upstream == {found["clip_embedding"].fingerprint, found["clip_text_embedding"].fingerprint}
    assert [name for name, planned in found.items() if planned.has_model] == ["clip_embedding", "clip_text_embedding"]
    assert label_targets(list(found.values()))["clip_score"].operator == "clip_score"


def test_a_model_changes_the_identity_of_what_reads_it(tmp_path: Path) -> None:
    scores = [
        plan(Pool(tmp_path), ClipScore(model=str(make_checkpoint(tmp_path / str(seed), seed=seed))))["clip_score"]
        for seed in (0, 1)
    ]
    assert scores[0].fingerprint != scores[1].fingerprint


def test_the_source_of_an_input_changes_the_identity(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    plain, by_url = plan(pool, CaptionStats(), CaptionStats(label="u", bind={"alt_text": "url"})).values()
    assert plain.fingerprint != by_url.fingerprint
    # Saying what is so anyway is no other operator; neither is the label that the source goes by.
    same = plan(pool, CaptionStats(bind={"alt_text": "alt_text"}))["caption_stats"]
    assert same.fingerprint == plain.fingerprint
    named = [
        plan(pool, Language(label=label), CaptionStats(label="s", bind={"alt_text": f"{label}.language_code"}))["s"]
        for label in ("one", "two")
    ]
    assert named[0].fingerprint == named[1].fingerprint


def test_phases_take_turns(tmp_path: Path) -> None:
    found = plan(
        Pool(tmp_path),
        CaptionStats(label="late", bind={"alt_text": "dedup.pair_duplicate_group"}),
        ExactDedup(label="dedup", bind={"alt_text": "tongue.language_code"}),
        Language(label="tongue"),
    )
    assert {name: planned.phase for name, planned in found.items()} == {"tongue": 0, "dedup": 1, "late": 2}
    assert {name: planned.follows_pool for name, planned in found.items()} == {
        "tongue": False,
        "dedup": True,
        "late": True,
    }


def test_circles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"in a circle: a -> b -> a"):
        plan(
            Pool(tmp_path),
            Language(label="a", bind={"alt_text": "b.language_code"}),
            Language(label="b", bind={"alt_text": "a.language_code"}),
        )


@pytest.mark.parametrize("label", ["Upper", "with space", "1st", "pool", "select", "a.b"])
def test_labels_must_work_in_sql(tmp_path: Path, label: str) -> None:
    with pytest.raises(InputError, match="cannot be used in SQL; take lower-case letters"):
        plan(Pool(tmp_path), Language(label=label))


def test_a_column_that_one_annotation_has_needs_no_bind(tmp_path: Path, tiny_pool: Pool) -> None:
    (tmp_path / "entries.txt").write_text("circle\n")
    match = MetadataMatch(metadata=str(tmp_path / "entries.txt"), label="meta")
    found = plan(Pool(tmp_path), ConceptBalance(), match)
    assert found["concept_balance"].origins["metadata_matches"].sql_name == "meta.metadata_matches"
    # Or one that the pool has already.
    with Executor(num_workers=1) as executor:
        annotate(tiny_pool, [match], executor=executor)
    later = plan(tiny_pool, ConceptBalance())
    assert later["concept_balance"].origins["metadata_matches"].sql_name == "meta.metadata_matches"
    assert later["concept_balance"].fingerprint == found["concept_balance"].fingerprint
    (tmp_path / "other.txt").write_text("square\n")
    other = MetadataMatch(metadata=str(tmp_path / "other.txt"), label="other")
    with pytest.raises(InputError, match=r"which meta, other have; say which with bind.metadata_matches=meta"):
        plan(Pool(tmp_path), match, other, ConceptBalance())
    with pytest.raises(MissingColumnsError, match="'metadata_matches', and the pool's samples have no such column"):
        plan(Pool(tmp_path), ConceptBalance())


def test_a_bound_column_without_a_label_is_found_where_only_one_has_it(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    short, full = (
        plan(pool, Language(label="one"), CaptionStats(label="s", bind={"alt_text": bound}))["s"]
        for bound in ("language_code", "one.language_code")
    )
    assert short.fingerprint == full.fingerprint
    with pytest.raises(InputError, match="which one, two have"):
        plan(
            pool,
            Language(label="one"),
            Language(label="two", bind={"alt_text": "url"}),
            CaptionStats(bind={"alt_text": "language_code"}),
        )
