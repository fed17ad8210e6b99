"""The score of pictures whose text is painted over."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate.columns import Input
from curate.operators.clip_embedding import ClipEmbedding
from curate.operators.clip_score import ClipScore
from curate.operators.clip_text_embedding import ClipTextEmbedding
from curate.operators.masked_clip_score import MaskedClipScore, mask_lines
from curate.operators.text_spotting import TextSpotting
from tests.contract import check_operator, column, make_inputs, run
from tests.model import make_checkpoint, make_siglip2

REVISION = "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
PINNED = MaskedClipScore(model="openai/clip-vit-base-patch32", revision=REVISION)
FINGERPRINT = "d395e9772f07836c3a471d6b447461e4977eb52f897f215f9b952e16e5a16104"


def upright(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


@pytest.fixture(scope="module", params=[make_checkpoint, make_siglip2])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(request.param(tmp_path_factory.mktemp("models") / "model"))


def test_only_rows_with_text_are_scored_anew(model: str) -> None:
    made = make_inputs(ClipEmbedding(model=model))
    num_rows = len(made["image"].valid)
    texts = make_inputs(ClipTextEmbedding(model=model))
    image = run(ClipEmbedding(model=model), made, num_rows)
    text = run(ClipTextEmbedding(model=model), texts, num_rows)
    lines = [[upright(0.1, 0.2, 0.8, 0.9)] if row % 2 else [] for row in range(num_rows)]

    def kept(output_errors: list[str | None], values: pa.Array) -> Input:
        return Input.from_errors(values.filter(values.is_valid()), output_errors)

    inputs = {
        "image": made["image"],
        "text_corners": Input.from_column(pa.array(lines, pa.list_(pa.list_(pa.float32())))),
        "image_embedding": kept(image.errors, image.columns["image_embedding"]),
        "text_embedding": kept(text.errors, text.columns["text_embedding"]),
    }
    output = check_operator(
        MaskedClipScore(model=model), pinned=PINNED, fingerprint=FINGERPRINT, inputs=inputs, tolerance=2e-3
    )
    plain_inputs = {name: inputs[name] for name in ("image_embedding", "text_embedding")}
    plain = column(run(ClipScore(model=model), plain_inputs, num_rows), "clip_score")
    masked = column(output, "masked_clip_score")
    for row in range(num_rows):
        if masked[row] is None:
            continue
        if row % 2:
            assert masked[row] != pytest.approx(plain[row], abs=1e-6)
        else:
            assert masked[row] == pytest.approx(plain[row], abs=1e-6)


def test_it_asks_for_what_it_reads(model: str) -> None:
    required = MaskedClipScore(model=model, label="b32").requires()
    assert [operator.sql_name for operator in required] == [
        "b32_clip_embedding",
        "b32_clip_text_embedding",
        "text_spotting",
    ]
    assert TextSpotting() in required
    bound = MaskedClipScore(model=model, bind={"text_corners": "mine.text_corners"})
    assert [operator.name for operator in bound.requires()] == ["clip_embedding", "clip_text_embedding"]


def test_a_line_has_the_mean_colour_around_it() -> None:
    picture = np.full((40, 40, 3), 100, np.uint8)
    picture[10:20, 10:30] = 255
    masked = mask_lines(picture, [upright(0.25, 0.25, 0.75, 0.5)])
    assert (masked == 100).all()
    assert (picture[10:20, 10:30] == 255).all()  # the original stays


def test_a_slanted_line_hides_no_more_than_itself() -> None:
    picture = np.full((100, 100, 3), 100, np.uint8)
    picture[10:20, 70:80] = 7  # in the corners of the upright box around the line
    picture[70:80, 10:20] = 9
    line = [0.1, 0.2, 0.2, 0.1, 0.8, 0.7, 0.7, 0.8]
    for offset in range(10, 70):
        picture[offset + 5, offset + 5] = 255
    masked = mask_lines(picture, [line])
    assert (masked[10:20, 70:80] == 7).all()
    assert (masked[70:80, 10:20] == 9).all()
    assert masked.max() == 100


def test_a_line_nearby_gives_no_colour() -> None:
    picture = np.full((60, 60, 3), 200, np.uint8)
    picture[10:22, 10:50] = picture[24:36, 10:50] = 0
    masked = mask_lines(picture, [upright(10 / 60, top / 60, 49 / 60, (top + 11) / 60) for top in (10, 24)])
    assert (masked == 200).all()


def test_a_line_between_lines_has_the_colour_of_all_around() -> None:
    picture = np.full((60, 60, 3), 250, np.uint8)
    picture[:, 10:50] = 40  # a dark package with three lines that touch
    lines = [upright(10 / 60, top / 60, 49 / 60, (top + 11) / 60) for top in (10, 22, 34)]
    assert mask_lines(picture, lines)[28, 30, 0] < 120  # not what lies at its sides


@pytest.mark.parametrize("box", [[0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5], [0.99, 0.99, 1.0, 1.0]])
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 500, 3), (40, 30, 3)])
def test_any_line_of_any_picture(box: list[float], shape: tuple[int, int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert mask_lines(picture, [upright(*box)] * 2).shape == shape


def test_a_missing_model_is_named() -> None:
    from schemas.errors import InputError

    with pytest.raises(InputError, match="does not exist"):
        MaskedClipScore(model=str(Path("/nowhere/at/all"))).identity()
