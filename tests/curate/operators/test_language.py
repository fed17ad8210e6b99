"""Languages of plain sentences, and what has none."""

import pyarrow as pa
import pytest

from curate.columns import Input
from curate.operators.language import UNDETERMINED, Language
from tests.contract import check_operator, column, run
from tests.pool import NULL_CAPTION_ROW

FINGERPRINT = "eaffdeacc6813abaf538a0debcc25d5bebc6b9cd9da187ff615d66bb5ef34c7b"


def detect(*captions: str | None) -> list[tuple[str, float]]:
    output = run(Language(), {"alt_text": Input.from_column(pa.array(captions, pa.string()))}, len(captions))
    return list(zip(column(output, "language_code"), column(output, "language_probability"), strict=True))


def test_contract() -> None:
    output = check_operator(Language(), fingerprint=FINGERPRINT)
    assert column(output, "language_code")[0] == "en"
    assert column(output, "language_code")[NULL_CAPTION_ROW] == UNDETERMINED


@pytest.mark.parametrize(
    ("caption", "code"),
    [
        ("a dog is running along the beach in the evening", "en"),
        ("ein Hund läuft am Abend den Strand entlang", "de"),
        ("un chien court le long de la plage le soir", "fr"),
        ("собака бежит по пляжу вечером", "ru"),
        ("一只狗在傍晚的海滩上奔跑", "zh"),
        ("夕方の浜辺を犬が走っている", "ja"),
        ("كلب يركض على الشاطئ في المساء", "ar"),
    ],
)
def test_languages(caption: str, code: str) -> None:
    ((found, probability),) = detect(caption)
    assert found == code
    assert 0.5 < probability <= 1.0


@pytest.mark.parametrize("caption", [None, "", "  \n ", "12345", "!!! --- 2020"])
def test_no_letters_no_language(caption: str | None) -> None:
    assert detect(caption) == [(UNDETERMINED, 0.0)]


def test_lines_are_joined() -> None:
    assert detect("a dog is running\nalong the beach\r\n in the evening") == detect(
        "a dog is running along the beach in the evening"
    )


def test_the_end_of_a_long_caption_counts() -> None:
    german = "ein Hund läuft am Abend den Strand entlang und freut sich über die Wellen " * 6
    ((code, _),) = detect(
        "the red house with a garden at the end of the street in the small town near the lake. " + german
    )
    assert code == "de"
