"""Settings are refused with their remedy, and only those that matter bind a pool."""

import pytest

from curate.fetch.config import DownloadConfig
from schemas.errors import InputError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fetcher": "wget"}, "fetcher is 'wget'; use winnow or img2dataset"),
        ({"resize_mode": "crop"}, "resize_mode is 'crop'; use one of no, border"),
        ({"encode_format": "gif"}, "encode_format is 'gif'; use one of jpg, png, webp"),
        ({"encode_quality": 0}, "encode_quality is 0; jpg takes 1 to 100"),
        ({"encode_format": "png", "encode_quality": 95}, "encode_quality is 95; png takes 0 to 9"),
        ({"shard_size": 0}, "shard_size is 0; it must be at least 1"),
        ({"request_seconds": 0.0}, "request_seconds is 0.0; it must be above 0"),
        ({"retries": -1}, "retries is -1; it must not be negative"),
        ({"user_agent": " "}, "name yourself"),
        ({"user_agent": "x/1\r\nHost: y"}, "it is one line of a request"),
    ],
)
def test_wrong_values(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DownloadConfig(**options)


def test_names_and_defaults() -> None:
    assert DownloadConfig().agent_token == "winnow"
    assert DownloadConfig(user_agent="MyBot/2.1 (+mail)").agent_token == "mybot"
    assert (DownloadConfig().quality, DownloadConfig(encode_format="png").quality) == (95, 6)


def test_stored_settings_are_about_what_is_stored() -> None:
    plain = DownloadConfig().stored_settings()
    assert DownloadConfig(retries=9, connections=3, fetcher="img2dataset", seed=4).stored_settings() == plain
    assert DownloadConfig(encode_quality=95).stored_settings() == plain
    assert DownloadConfig(image_size=1).stored_settings() != plain
    assert plain["max_image_area"] is None
