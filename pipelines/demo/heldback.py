"""The held-back pictures: evaluation sets in CLIP_benchmark's layout, of scenes that no list of the web contains."""

from collections.abc import Sequence

from curate.store import Store
from curate.tar import TarWriter
from pipelines.demo.captions import PROMPTS, captions
from pipelines.demo.picture import Picture, draw_all
from pipelines.demo.scenes import COLOURS, OBJECTS, make_object_scene, make_scene
from schemas.progress import Progress

RETRIEVAL_FOLDER = "evaluation/scenes"
CLASSES_FOLDER = "evaluation/colours_objects"
_SHARDS_FILE = "test/nshards.txt"
_SEED = 30_000_000
NUM_CAPTIONS = 5


def make_evaluation(folder: Store, *, num_scenes: int, images_per_class: int, seed: int, progress: Progress) -> None:
    """Write a retrieval set (scenes with five captions each) and a classification set (colour and object), unless they are there."""
    if not folder.exists(f"{RETRIEVAL_FOLDER}/{_SHARDS_FILE}"):
        scenes = [make_scene(_SEED + seed * 1_000_000 + index) for index in range(num_scenes)]
        texts = ["\n".join(captions(scene, NUM_CAPTIONS)) for scene in scenes]
        pictures = [Picture(scene=scene) for scene in scenes]
        folder.commit_bytes(f"{RETRIEVAL_FOLDER}/dataset_type.txt", b"retrieval\n")
        _write(folder, RETRIEVAL_FOLDER, pictures, "txt", texts, progress)
    if not folder.exists(f"{CLASSES_FOLDER}/{_SHARDS_FILE}"):
        classes = [(colour, name) for colour in COLOURS for name in OBJECTS]
        labels = [label for label in range(len(classes)) for _ in range(images_per_class)]
        pictures = [
            Picture(scene=make_object_scene(*classes[label], seed * 1_000 + index % images_per_class))
            for index, label in enumerate(labels)
        ]
        names = "".join(f"{colour} {name}\n" for colour, name in classes)
        templates = "".join(f"{prompt}\n" for prompt in PROMPTS)
        folder.commit_bytes(f"{CLASSES_FOLDER}/classnames.txt", names.encode())
        folder.commit_bytes(f"{CLASSES_FOLDER}/zeroshot_classification_templates.txt", templates.encode())
        _write(folder, CLASSES_FOLDER, pictures, "cls", [str(label) for label in labels], progress)


def _write(
    folder: Store, name: str, pictures: Sequence[Picture], suffix: str, texts: Sequence[str], progress: Progress
) -> None:
    with folder.commit(f"{name}/test/0.tar") as file:
        tar = TarWriter(file)
        for index, (data, text) in enumerate(zip(draw_all(pictures, progress), texts, strict=True)):
            tar.add(f"s{index:07d}.jpg", data)
            tar.add(f"s{index:07d}.{suffix}", text.encode())
        tar.close()
    # The number of shards goes last: it says that the set is whole.
    folder.commit_bytes(f"{name}/{_SHARDS_FILE}", b"1\n")
