"""What a download may be told; every field is a flag of `winnow download` and a key of a recipe's `download` section."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Literal

from curate.images import ENCODE_FORMATS, MAX_PIXELS, RESIZE_MODES, ResizeMode
from schemas.errors import InputError

Fetcher = Literal["winnow", "img2dataset"]

_QUALITIES = {"jpg": (95, 1, 100), "webp": (95, 1, 100), "png": (6, 0, 9)}
# Fields that decide what is stored for a URL that answers; a pool keeps to one set of them.
_STORED_FIELDS = (
    "shard_size",
    "image_size",
    "resize_mode",
    "resize_only_if_bigger",
    "keep_original",
    "encode_format",
    "encode_quality",
    "min_image_size",
    "max_image_area",
    "max_aspect_ratio",
    "max_pixels",
)


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """The settings of a download.

    DownloadConfig()                                                 # 256 px, white border, as img2dataset
    DownloadConfig(image_size=224, resize_mode="center_crop")
    DownloadConfig(resize_mode="no", keep_original=True)             # the bytes as the server sent them
    DownloadConfig(url_column="link", caption_column="description")  # a list with other headers
    """

    fetcher: Fetcher = "winnow"  # who fetches: winnow (polite, asynchronous) or img2dataset (the real package, fenced)

    # The list.
    input_format: str = ""  # parquet, csv, tsv, jsonl or txt; empty: by file name
    url_column: str = ""  # empty: the first of url, image_url, img_url, link, image, whatever its case
    caption_column: str = ""  # empty: the first of caption, text, alt_text, alt, title, whatever its case
    uid_column: str = "uid"  # brings identities of 32 hex characters; where absent they come from url and alt-text
    sha256_column: str = "sha256"  # hashes the downloads must have, where the list has such a column
    extra_columns: tuple[str, ...] = ("*",)  # columns carried along; * is all of them
    encoding: str = "utf-8"  # of csv, tsv, jsonl and txt lists
    shard_size: int = 10_000  # rows per shard

    # What is stored.
    image_size: int = 256  # pixels, of the side that the resize mode fixes
    resize_mode: ResizeMode = "border"  # no, border, keep_ratio, keep_ratio_largest or center_crop
    resize_only_if_bigger: bool = False  # leave smaller pictures at their size
    keep_original: bool = False  # store the downloaded bytes untouched (img2dataset's disable_all_reencoding)
    encode_format: str = "jpg"  # jpg, png or webp
    encode_quality: int | None = None  # 1 to 100 for jpg and webp (95), compression 0 to 9 for png (6)
    min_image_size: int = 0  # smallest short side accepted, in pixels
    max_image_area: float = math.inf  # largest width x height accepted, in pixels
    max_aspect_ratio: float = math.inf  # largest long side / short side accepted
    max_pixels: int = MAX_PIXELS  # no picture larger than this is decoded

    # The network.
    allow_private: bool = False  # fetch from private, loopback and link-local addresses too
    user_agent: str = (
        "Winnow/0.1 (image-text dataset builder)"  # sent as it is; its first word is the name robots.txt knows
    )
    respect_robots: bool = True  # read robots.txt before a host's first image
    disallowed_directives: tuple[str, ...] = ("noai", "noimageai", "noml", "noindex", "noimageindex")  # of X-Robots-Tag
    connections: int = 64  # requests at once, per worker
    connections_per_host: int = 8  # requests at once to one host, over all workers of a machine
    request_seconds: float = 20.0  # limit of one attempt at a URL, redirects and body included
    max_bytes: int = 32 * 1024**2  # largest file accepted, after decompression
    max_redirects: int = 5  # hops followed per URL
    retries: int = 2  # further attempts after a temporary error (429, 5xx, timeout, reset)
    backoff_seconds: float = 1.0  # mean wait before the first further attempt; doubles with each
    max_retry_after_seconds: float = 60.0  # a server that asks for a longer wait is left for `winnow retry`
    max_crawl_delay_seconds: float = 10.0  # a longer crawl-delay counts as this
    shard_seconds: float = 1800.0  # when a shard has taken this long, its unfinished rows become temporary errors
    decode_threads: int = 1  # threads that decode and encode, per worker
    seed: int = 0  # of the back-off's jitter

    def __post_init__(self) -> None:
        """Refuse values that cannot work, each with its remedy."""
        _require(self.fetcher in ("winnow", "img2dataset"), "fetcher", self.fetcher, "use winnow or img2dataset")
        _require(
            self.resize_mode in RESIZE_MODES, "resize_mode", self.resize_mode, f"use one of {', '.join(RESIZE_MODES)}"
        )
        _require(
            self.encode_format in ENCODE_FORMATS,
            "encode_format",
            self.encode_format,
            f"use one of {', '.join(ENCODE_FORMATS)}",
        )
        for name in (
            "shard_size",
            "image_size",
            "connections",
            "connections_per_host",
            "max_bytes",
            "decode_threads",
            "max_pixels",
        ):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "it must be at least 1")
        for name in ("request_seconds", "shard_seconds"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "it must be above 0")
        for name in ("retries", "backoff_seconds", "max_redirects", "min_image_size"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "it must not be negative")
        _, lowest, highest = _QUALITIES[self.encode_format]
        _require(
            lowest <= self.quality <= highest,
            "encode_quality",
            self.quality,
            f"{self.encode_format} takes {lowest} to {highest}",
        )
        _require(
            bool(self.user_agent.strip()), "user_agent", self.user_agent, "name yourself, so that hosts can answer"
        )
        _require(self.user_agent.isprintable(), "user_agent", self.user_agent, "it is one line of a request")

    @property
    def quality(self) -> int:
        """The encoder's quality, the format's own default where none was given."""
        return _QUALITIES[self.encode_format][0] if self.encode_quality is None else self.encode_quality

    @property
    def agent_token(self) -> str:
        """The name that robots.txt and X-Robots-Tag address, lower case: the user agent up to its version."""
        return self.user_agent.split("/")[0].split()[0].lower()

    def stored_settings(self) -> dict[str, object]:
        """Return what decides the stored bytes; equal settings give equal shards for equal downloads."""
        values = {**asdict(self), "encode_quality": self.quality}
        return {name: _plain(values[name]) for name in _STORED_FIELDS}


def _plain(value: object) -> object:
    # JSON has no infinity.
    return None if isinstance(value, float) and math.isinf(value) else value


def _require(holds: bool, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise InputError(f"{name} is {value!r}; {remedy}")


assert {f.name for f in fields(DownloadConfig)}.issuperset(_STORED_FIELDS)
