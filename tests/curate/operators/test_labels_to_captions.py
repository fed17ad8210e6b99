"""Labels in words: the label stays, the templates vary, what has no name is a row's error."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.captions.templates import read_templates
from curate.columns import Input
from curate.operators.labels_to_captions import LabelsToCaptions, tidy
from schemas.errors import InputError
from tests.contract import check_operator, column, run

FINGERPRINT = "0596cd9ce65c5a8d23a37b6c568350970479aa5c250b7bcbee0cdd9f3077415e"


def inputs(labels: list[Any], kind: pa.DataType) -> dict[str, Input]:
    uids = pa.array([f"{row:032x}" for row in range(len(labels))])
    return {"uid": Input.from_column(uids), "label": Input.from_column(pa.array(labels, kind))}


def test_contract() -> None:
    labels = ["tabby_cat", None, " ", "{label} {0}", "dog", "dog", "dog", "dog"]
    output = check_operator(LabelsToCaptions(), fingerprint=FINGERPRINT, inputs=inputs(labels, pa.string()))
    captions = column(output, "label_captions")
    assert output.errors[:4] == [None, "no label", "no label", None]
    assert captions[1] is captions[2] is None
    assert column(output, "label_text")[0] == "tabby cat"
    assert all("tabby cat" in caption for caption in captions[0])
    assert all("{label} {0}" in caption for caption in captions[3])
    assert all(len(set(found)) == 4 for found in captions if found)
    templates = read_templates("photo")
    assert captions[4][0] == templates[column(output, "label_templates")[4][0]].replace("{a_label}", "a dog")
    # Every sample draws its own.
    assert len({tuple(found) for found in captions[4:]}) == 4


def test_the_draw_is_of_seed_and_uid() -> None:
    rows = inputs(["dog"] * 6, pa.string())
    plain = column(run(LabelsToCaptions(), rows, 6), "label_captions")
    assert plain == column(run(LabelsToCaptions(), rows, 6), "label_captions")
    assert plain != column(run(LabelsToCaptions(seed=1), rows, 6), "label_captions")


def test_numbers_and_their_names(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("pneumonia\nno_finding\n")
    operator = LabelsToCaptions(
        templates="medical", classes=str(tmp_path / "classes.txt"), modality="chest x-ray", num_captions=8
    )
    output = run(operator, inputs([0, 1, 2, -1], pa.int64()), 4)
    assert all("pneumonia" in caption and "chest x-ray" in caption for caption in column(output, "label_captions")[0])
    assert column(output, "label_text") == ["pneumonia", "no finding", None, None]
    assert output.errors[2:] == ["label 2 has no name; classes has 2", "label -1 has no name; classes has 2"]
    without = run(LabelsToCaptions(), inputs([0], pa.int64()), 1)
    assert without.errors == ["label 0 is a number; give classes=FILE with the names"]


def test_several_labels_are_all_there_in_a_drawn_order() -> None:
    rows = inputs([["oil", "canvas", "portrait", "oil", ""]] * 12, pa.list_(pa.string()))
    output = run(LabelsToCaptions(templates="art"), rows, 12)
    assert all(
        all(label in caption for label in ("oil", "canvas", "portrait"))
        for found in column(output, "label_captions")
        for caption in found
    )
    assert len(set(column(output, "label_text"))) > 2
    assert column(run(LabelsToCaptions(), inputs([[]], pa.list_(pa.string())), 1), "label_text") == [None]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give modality="):
        LabelsToCaptions(templates="medical")
    with pytest.raises(InputError, match="num_captions is 9; 'photo' has 8 templates"):
        LabelsToCaptions(num_captions=9)
    with pytest.raises(InputError, match="no such file"):
        LabelsToCaptions(classes=str(tmp_path / "gone.txt"))


@given(st.text())
def test_labels_become_words_on_one_line(label: str) -> None:
    text = tidy(label)
    assert text.isprintable()
    assert text == " ".join(text.split())
