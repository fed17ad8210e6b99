"""From alt-text to what the trainer draws: rewrites asked for over HTTP under Ray, selected, built, read by stock readers and the trainer."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from curate.annotate import annotate
from curate.build import BuildConfig, build
from curate.executor import Executor
from curate.operators.negatives import Negatives
from curate.operators.rewrite import Rewrite
from curate.operators.sub_captions import SubCaptions
from curate.select import Selection, select
from schemas.progress import SilentProgress
from tests.chat_model import Asked, ChatModel
from tests.pool import FAILED_ROWS, make_pool
from train.index import Dataset

REFUSED = "number 7"


def say(asked: Asked) -> str:
    caption = asked.texts[-1].split("\n\n")[-1].removesuffix(" =>")
    return "I cannot do that." if REFUSED in caption else f"picture {asked.seed % 100_000}x of {caption}"


@pytest.mark.parametrize("view", [False, True])
def test_rewrites_are_drawn_with_the_original(tmp_path: Path, ray_session: Executor, *, view: bool) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=1, shard_size=12)
    with ChatModel(say) as served:
        operator = Rewrite(model="test", engine="openai", url=served.url, keep_numbers=False)
        operators = [operator, SubCaptions(bind={"alt_text": "rewrite.rewrite"}), Negatives()]
        annotate(pool, operators, executor=ray_session)
        num_asked = len(served.questions)
        annotate(pool, operators, executor=ray_session)
        assert len(served.questions) == num_asked > 40
    captions = {"alt_text": 0.2, "rewrite[*]": 0.8, "sub_captions.sub_captions[*]": 0.0}
    selection = select(pool, Selection(name="laclip", captions=captions))
    config = BuildConfig(view=view)
    built = build(
        pool, selection.folder, str(tmp_path / "out"), config, executor=ray_session, progress=SilentProgress()
    )
    dataset = Dataset.open(built.folder, cache=str(tmp_path / "cache"))
    assert dataset.num_samples == 12 - len(FAILED_ROWS)
    _check_draws(dataset)
    if not view:
        _check_json(built.folder)


def _check_draws(dataset: Dataset) -> None:
    draws = np.random.default_rng(0).random((5000, 2))
    for row in range(dataset.num_samples):
        texts = dataset.table.captions(row)
        drawn = Counter(dataset.mixture.draw(texts, float(one), float(other)) for one, other in draws)
        caption = next(text for text in texts if isinstance(text, str))
        if REFUSED in caption or not caption:
            assert set(drawn) == {caption}
            continue
        # The even draw over the original and four rewrites.
        assert len(drawn) == 5
        assert all(count == pytest.approx(1000, abs=150) for count in drawn.values())


def _check_json(folder: str) -> None:
    """What open_clip's --json-text-key "rewrite_0;rewrite_1;rewrite_2;rewrite_3;caption" reads: the same text fields in every sample."""
    import webdataset

    urls = [str(path) for path in sorted(Path(folder).glob("*.tar"))]
    records = [json.loads(data) for (data,) in webdataset.WebDataset(urls, shardshuffle=False).to_tuple("json")]
    keys = [f"rewrite_{number}" for number in range(4)]
    assert len(records) == 10
    for record in records:
        assert all(isinstance(record[key], str) for key in (*keys, "caption"))
        is_refused = REFUSED in record["caption"] or not record["caption"]
        assert [record[key] == "" for key in keys] == [is_refused] * 4
