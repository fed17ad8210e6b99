"""Decisions as a column: by uid, null where nobody decided, the same identity wherever the file lies."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.columns import Input
from curate.fingerprint import fingerprint
from curate.operators.manual import Manual
from schemas.errors import InputError
from tests.contract import check_operator, column

FINGERPRINT = "0f8256bfdef2a3f7c2abb921dca9ebffd23b67c82470ed16eb9c734cb84f44ad"


def write(path: Path, decided: dict[str, str]) -> str:
    pq.write_table(pa.table({"uid": list(decided), "decision": list(decided.values())}), path)
    return str(path)


def uid(number: int) -> str:
    return f"{number:032x}"


def test_contract(tmp_path: Path) -> None:
    operator = Manual(decisions=write(tmp_path / "d.parquet", {uid(0): "keep", uid(2): "drop", uid(3): "flag"}))
    inputs = {"uid": Input.from_column(pa.array([*map(uid, range(4)), None]))}
    output = check_operator(operator, fingerprint=FINGERPRINT, inputs=inputs)
    assert column(output, "decision") == ["keep", None, "drop", "flag", None]
    assert output.errors == [None] * 4 + ["no uid"]


def test_neither_place_nor_order_is_part_of_the_identity(tmp_path: Path) -> None:
    first = Manual(decisions=write(tmp_path / "a.parquet", {uid(0): "keep", uid(1): "drop"}))
    second = Manual(decisions=write(tmp_path / "b.parquet", {uid(1): "drop", uid(0): "keep"}))
    other = Manual(decisions=write(tmp_path / "c.parquet", {uid(1): "drop", uid(0): "flag"}))
    assert fingerprint(first, {}) == fingerprint(second, {}) != fingerprint(other, {})


def test_what_is_no_file_of_decisions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`winnow browse` writes that file"):
        Manual(decisions=str(tmp_path / "gone.parquet")).load()
    (tmp_path / "text.parquet").write_text("keep everything")
    with pytest.raises(InputError, match="not a Parquet file of decisions"):
        Manual(decisions=str(tmp_path / "text.parquet")).load()
    with pytest.raises(InputError, match=f"decides 'burn' about {uid(7)}; it must be one of keep, drop, flag"):
        Manual(decisions=write(tmp_path / "d.parquet", {uid(7): "burn"})).load()
    pq.write_table(pa.table({"uid": [uid(1)]}), tmp_path / "e.parquet")
    with pytest.raises(InputError, match="decisions are uid and decision"):
        Manual(decisions=str(tmp_path / "e.parquet")).load()
