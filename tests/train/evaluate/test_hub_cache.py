"""Sets in the cache of Hugging Face `datasets`, laid out as DataComp's `download_evalsets.py` leaves them: checked against its three sets' scripts."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from schemas.errors import InputError, StaleDatasetError
from tests.train.evaluate.encoder import ColourEncoder
from tests.train.evaluate.test_folder import COLOURS, flat
from train.evaluate.hub_cache import is_cached_set, read_cached_set
from train.evaluate.suite import evaluate_model, expand
from train.evaluate.task import AssociationTask, RetrievalTask

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXTS = pa.list_(pa.string())
FLICKR = "flickr_1k_test_image_text_retrieval"
RETRIEVAL_SCHEMA = pa.schema([
    ("image", IMAGE), ("caption", TEXTS), ("sentids", TEXTS), ("split", pa.string()), ("img_id", pa.string()),
    ("filename", pa.string()),
])  # fmt: skip
GAMES_SCHEMA = pa.schema([
    ("candidates", TEXTS), ("cue", pa.string()), ("candidate_images", pa.list_(IMAGE)), ("associations", TEXTS),
    ("score_fool_the_ai", pa.float64()), ("num_associations", pa.int64()), ("num_candidates", pa.int64()),
    ("solvers_jaccard_mean", pa.float64()), ("solvers_jaccard_std", pa.float64()), ("ID", pa.int64()),
])  # fmt: skip


def write_cached_set(
    cache: Path, name: str, schema: pa.Schema, rows: Sequence[Mapping[str, object]], *, parts: int = 1
) -> Path:
    """Write a set as `datasets` writes one with a loading script's configuration TEST, and return its folder."""
    place = cache / f"nlphuji___{name}" / "TEST" / "1.1.0" / ("ab" * 32)
    place.mkdir(parents=True)
    for part in range(parts):
        suffix = f"-{part:05d}-of-{parts:05d}" if parts > 1 else ""
        own = rows[part * len(rows) // parts : (part + 1) * len(rows) // parts]
        with pa.OSFile(str(place / f"{name}-test{suffix}.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as out:
            for row in own:  # several batches, as a large set has
                out.write_table(pa.Table.from_pylist([dict(row)], schema=schema))
    (place / "dataset_info.json").write_text(json.dumps({"splits": {"test": {"num_examples": len(rows)}}}))
    place.with_name(f"{place.name}_builder.lock").touch()
    (cache / f"_eval_{name}_TEST_1.1.0.lock").touch()
    return cache / f"nlphuji___{name}"


def unpack(cache: Path, folder: str, names: Mapping[str, tuple[int, int, int]]) -> dict[str, dict[str, object]]:
    """Write pictures where `datasets` unpacks an archive, and return by name how the Arrow file refers to each."""
    place = cache / "downloads" / "extracted" / ("cd" * 32) / folder
    place.mkdir(parents=True, exist_ok=True)
    for name, colour in names.items():
        (place / f"{name}.jpg").write_bytes(flat(colour, "jpeg"))
    return {name: {"bytes": None, "path": str(place / f"{name}.jpg")} for name in names}


def retrieval_rows(images: Mapping[str, object]) -> list[dict[str, object]]:
    """Return a row per colour; the red picture has two captions, the green one's names a pink nearer to the others."""
    captions = {"red": ["250 10 10", " a red 240 20 20\n"], "green": ["250 10 200"], "blue": ["10 10 250"]}
    return [
        {"image": images[name], "caption": own, "sentids": ["0"], "split": "test", "img_id": "7", "filename": name}
        for name, own in captions.items()
    ]


def game(cue: str, images: Mapping[str, object], associations: Sequence[str]) -> dict[str, object]:
    """Return a game over all the images."""
    return {
        "candidates": list(images),
        "cue": cue,
        "candidate_images": list(images.values()),
        "associations": list(associations),
        "score_fool_the_ai": 40.0,
        "num_associations": len(associations),
        "num_candidates": len(images),
        "ID": 1,
    }


def write_flickr(cache: Path, **settings: int) -> Path:
    return write_cached_set(
        cache, FLICKR, RETRIEVAL_SCHEMA, retrieval_rows(unpack(cache, "images_flickr_1k_test", COLOURS)), **settings
    )


def write_games(cache: Path) -> Path:
    """Write a game of three and one of twelve candidates, of which two are red."""
    many = {f"dark{number}": (0, 10 * number, 200) for number in range(10)} | {
        "ruby": (250, 10, 10),
        "rose": (240, 20, 20),
    }
    images = unpack(cache, "winogavil_images", COLOURS | many)
    few = {name: images[name] for name in COLOURS}
    games = [
        game("250 10 10", few, ["red"]),
        game("250 10 10", {name: images[name] for name in many}, ["ruby", "dark0"]),
    ]
    return write_cached_set(cache, "winogavil", GAMES_SCHEMA, games)


@pytest.mark.parametrize("parts", [1, 3])
def test_retrieval_is_read_from_files_that_the_rows_name(tmp_path: Path, parts: int) -> None:
    folder = write_flickr(tmp_path / "hf_cache", parts=parts)
    assert is_cached_set(str(folder))
    (task,) = read_cached_set(f"{folder}/").tasks
    assert isinstance(task, RetrievalTask)
    assert list(task.captions) == [["250 10 10", "a red 240 20 20"], ["250 10 200"], ["10 10 250"]]
    model = ColourEncoder()
    metrics = evaluate_model(model, [str(folder)], batch_size=2, num_workers=2)[folder.name]
    assert metrics["image_to_text_recall@1"] == pytest.approx(2 / 3)
    assert metrics["text_to_image_recall@1"] == pytest.approx(3 / 4)
    assert model.batches == [2, 1]


def test_a_cache_that_was_moved_finds_its_files(tmp_path: Path) -> None:
    write_flickr(tmp_path / "old" / "hf_cache")
    (tmp_path / "old").rename(tmp_path / "new")
    (folder,) = expand(str(tmp_path / "new"))
    assert Path(folder).name == f"nlphuji___{FLICKR}"
    assert evaluate_model(ColourEncoder(), [folder], num_workers=0)[Path(folder).name]["num_images"] == 3
    shutil.rmtree(tmp_path / "new" / "hf_cache" / "downloads")
    with pytest.raises(InputError, match=r"row 1: image .*red\.jpg is neither there nor in .*/new/hf_cache/downloads"):
        read_cached_set(folder)


def test_images_inside_the_arrow_file_are_read_from_there(tmp_path: Path) -> None:
    images = {name: {"bytes": flat(colour), "path": f"{name}.png"} for name, colour in COLOURS.items()}
    schema = RETRIEVAL_SCHEMA.set(1, pa.field("caption", pa.string()))
    rows = [row | {"caption": " ".join(map(str, COLOURS[str(row["filename"])]))} for row in retrieval_rows(images)]
    folder = write_cached_set(tmp_path, FLICKR, schema, rows, parts=2)
    metrics = evaluate_model(ColourEncoder(), [str(folder)], num_workers=2, batch_size=2)[folder.name]
    assert metrics["mean_recall@1"] == 1.0
    (task,) = read_cached_set(str(folder)).tasks
    assert len(task.images.tars) == 2  # type: ignore[union-attr]
    # A broken image is named by its place.
    rows[1] = rows[1] | {"image": {"bytes": b"no image", "path": None}}
    shutil.rmtree(folder)
    write_cached_set(tmp_path, FLICKR, schema, rows)
    with pytest.raises(StaleDatasetError, match=rf"{FLICKR}-test\.arrow at byte \d+ is not a readable image"):
        evaluate_model(ColourEncoder(), [str(folder)], num_workers=0)


def test_winogavil_is_measured_as_datacomp_measures_it(tmp_path: Path) -> None:
    folder = write_games(tmp_path / "hf_cache")
    (task,) = read_cached_set(str(folder)).tasks
    assert isinstance(task, AssociationTask)
    assert len(task.images) == 15
    model = ColourEncoder()
    metrics = evaluate_model(model, [str(folder)], num_workers=0)[folder.name]
    assert model.texts == ["A 250 10 10", "A 250 10 10"]
    assert metrics["jaccard_5_6"] == 1.0
    assert metrics["jaccard_10_12"] == pytest.approx(1 / 3)  # of ruby and dark0 it finds ruby, and takes rose
    assert metrics["num_games"] == 2
    # The same with the images inside, where each game has its own copies: equal names are one image.
    images = {name: {"bytes": flat(colour), "path": None} for name, colour in COLOURS.items()}
    shutil.rmtree(folder)
    games = [game("250 10 10", images, ["red", "not there"]), game("10 250 10", images, ["green"])]
    (task,) = read_cached_set(str(write_cached_set(tmp_path / "hf_cache", "winogavil", GAMES_SCHEMA, games))).tasks
    assert isinstance(task, AssociationTask)
    assert len(task.images) == 3
    assert [list(own.candidates) for own in task.instances] == [[0, 1, 2], [0, 1, 2]]
    assert [own.associations for own in task.instances] == [frozenset([0]), frozenset([1])]


def test_a_cache_in_object_storage_is_read(tmp_path: Path) -> None:
    write_flickr(tmp_path / "hf_cache")
    images = {name: {"bytes": flat(colour), "path": None} for name, colour in COLOURS.items()}
    write_cached_set(tmp_path / "hf_cache", "winogavil", GAMES_SCHEMA, [game("250 10 10", images, ["red"])])
    storage = fsspec.filesystem("memory")
    storage.put(str(tmp_path / "hf_cache"), "/bucket/eval/hf_cache", recursive=True)
    shutil.rmtree(tmp_path / "hf_cache")
    try:
        results = evaluate_model(ColourEncoder(), ["memory://bucket/eval"], num_workers=0)
    finally:
        storage.rm("/bucket", recursive=True)
    assert results[f"nlphuji___{FLICKR}"]["image_to_text_recall@1"] == pytest.approx(2 / 3)
    assert results["nlphuji___winogavil"]["jaccard"] == 1.0


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    assert not is_cached_set(str(tmp_path))
    folder = write_flickr(tmp_path, parts=2)
    (place,) = (folder / "TEST" / "1.1.0").glob("*b")
    shutil.copytree(place, place.with_name("other"))
    with pytest.raises(InputError, match=r"holds 2 finished downloads of a test split \(.*other\); leave one"):
        read_cached_set(str(folder))
    # Without the file that is written last a download is none; `datasets` leaves such folders behind.
    (place.with_name("other") / "dataset_info.json").unlink()
    assert len(read_cached_set(str(folder)).tasks) == 1
    (place / f"{FLICKR}-test-00000-of-00002.arrow").unlink()
    with pytest.raises(InputError, match="holds 1 of the 2 parts of its test split"):
        read_cached_set(str(folder))
    (place / f"{FLICKR}-test-00001-of-00002.arrow").rename(place / f"{FLICKR}-test.arrow")
    whole = (place / f"{FLICKR}-test.arrow").read_bytes()
    (place / f"{FLICKR}-test.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"-test\.arrow is no Arrow stream or is cut off"):
        read_cached_set(str(folder))
    (place / "dataset_info.json").unlink()
    assert not is_cached_set(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": []}, "row 1 has no caption"),
        ({"image": None}, "row 1 lacks an image"),
        ({"image": {"bytes": None, "path": None}}, "row 1 lacks an image"),
        ({"image": {"bytes": None, "path": "http://host/a.jpg"}}, r"image http://host/a\.jpg is neither there nor in"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    (row, *_) = retrieval_rows(unpack(tmp_path, "x", COLOURS))
    folder = write_cached_set(tmp_path, FLICKR, RETRIEVAL_SCHEMA, [row | change])
    with pytest.raises(InputError, match=message):
        read_cached_set(str(folder))


def test_wrong_games_and_columns_are_named(tmp_path: Path) -> None:
    images = unpack(tmp_path, "x", COLOURS)
    for number, change in enumerate([{"candidates": ["red"]}, {"associations": ["cow"]}, {"cue": ""}]):
        rows = [game("red", images, ["red"]) | change]
        folder = write_cached_set(tmp_path / str(number), "winogavil", GAMES_SCHEMA, rows)
        with pytest.raises(InputError, match="row 1 is no game: it needs a cue, an image for each of its candidates"):
            read_cached_set(str(folder))
    folder = write_cached_set(tmp_path, "other", pa.schema([("text", pa.string())]), [{"text": "a"}])
    with pytest.raises(
        InputError, match=r"has neither the columns image, caption nor candidate_images, .* it has text"
    ):
        read_cached_set(str(folder))
    folder = write_cached_set(
        tmp_path, "paths", pa.schema([("image", pa.string()), ("caption", TEXTS)]), [{"image": "a", "caption": ["b"]}]
    )
    with pytest.raises(InputError, match=r"has no images but string; cast the column to datasets\.Image\(\)"):
        read_cached_set(str(folder))


@pytest.mark.parametrize("is_embedded", [False, True])
def test_what_the_library_itself_writes_is_read(tmp_path: Path, is_embedded: bool) -> None:
    datasets = pytest.importorskip("datasets")
    paths = {name: str(image["path"]) for name, image in unpack(tmp_path, "x", COLOURS).items()}
    rows = retrieval_rows({
        n: {"bytes": Path(p).read_bytes(), "path": n} if is_embedded else p for n, p in paths.items()
    })
    features = datasets.Features({
        name: datasets.Image() if name == "image" else [datasets.Value("string")]
        for name in ("image", "caption", "sentids")
    })
    kept = [{name: row[name] for name in features} for row in rows]
    datasets.Dataset.from_generator(
        lambda: iter(kept), features=features, split="test", cache_dir=str(tmp_path / "cache"), fingerprint="a" * 16
    )
    folder = tmp_path / "cache" / "somebody___set"
    (tmp_path / "cache" / "generator").rename(folder)
    assert is_cached_set(str(folder))
    assert evaluate_model(ColourEncoder(), [str(folder)], num_workers=0)["somebody___set"]["num_captions"] == 4
