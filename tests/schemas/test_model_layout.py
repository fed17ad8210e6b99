from pathlib import Path

from schemas.model_layout import OPEN_CLIP_CONFIG, conversion_hint


def test_only_what_looks_like_open_clips_is_to_be_converted(tmp_path: Path) -> None:
    (tmp_path / "epoch_3.pt").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / OPEN_CLIP_CONFIG).write_text("{}")
    for name in ("epoch_3.pt", "theirs"):
        assert f"`winnow convert {tmp_path / name} --to transformers --out DIR`" in conversion_hint(tmp_path / name)
    for name in ("notes.txt", "nowhere.pt", ""):
        assert conversion_hint(tmp_path / name) == ""
    assert conversion_hint("openai/clip-vit-base-patch32") == ""
