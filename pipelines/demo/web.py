"""Makes the miniature web: a list of (url, alt-text) pairs, the site that answers for it, and apart from both the planted truth.

The pipeline is given `inputs/` and a server's addresses, nothing else. `truth.parquet` lies outside; `pipelines.demo.compare` is the only
module that reads it. The same seed and addresses give the same bytes.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from curate.store import Store
from pipelines.demo.captions import caption, captions
from pipelines.demo.fault import BROKEN_KINDS
from pipelines.demo.picture import Picture, draw_all
from pipelines.demo.scenes import Scene, make_scene
from pipelines.demo.server import SITE_SCHEMA, Host
from pipelines.demo.translation import LANGUAGES, translate
from schemas.progress import Progress
from schemas.uid import sample_uid

URLS_FILE = "inputs/urls.parquet"
TRUSTED_FILE = "inputs/trusted.parquet"
SITE_FILE = "web/site.parquet"
TRUTH_FILE = "truth.parquet"

# Share of the list's rows by fault; what remains is sound.
FAULTS: Mapping[str, float] = {
    "mismatched": 0.18,  # a true caption of another picture
    "boilerplate": 0.04,
    "file_name": 0.04,
    "painted_text": 0.04,  # the caption is written in the picture
    "near_copy": 0.04,
    "exact_copy": 0.04,
    "tiny": 0.02,
    "extreme_aspect": 0.02,
    "broken_file": 0.03,
    "other_language": 0.05,
    "not_found": 0.02,
    "timeout": 0.003,
    "opted_out": 0.03,
}
# Share of the rows that are sound but take some trouble to fetch; dropping one is a mistake.
TROUBLES: Mapping[str, float] = {"redirected": 0.03, "throttled": 0.015}
CLEAN = "clean"

TRUTH_SCHEMA = pa.schema([
    pa.field("uid", pa.string()),
    pa.field("url", pa.string()),
    pa.field("alt_text", pa.string()),
    pa.field("kind", pa.string()),  # a key of FAULTS or TROUBLES, or CLEAN
    pa.field("detail", pa.string()),
    pa.field("group", pa.int32()),  # equal for an original and its copies; null where a picture has none
])
# Seeds of the scenes: the list, the captions of mismatched pairs, the trusted pairs and the evaluation never share one.
_LIST_SEED, _OTHER_SEED, _TRUSTED_SEED = 0, 10_000_000, 20_000_000
_BOILERPLATE = (
    "click here to see more",
    "image may contain: text",
    "Image may contain: outdoor, nature",
    "stock photo",
    "photo",
    "No description available.",
    "image not found",
    "buy now with free shipping",
    "Share on Facebook",
    "this image is subject to copyright",
    "sign up for our newsletter",
    "add to cart",
    "untitled",
    "picture 1 of 5",
    "Copyright 2024. All rights reserved.",
    "Follow us on Instagram",
)
_FILE_NAMES = (
    "IMG_{n:04d}.JPG",
    "DSC{n:05d}.jpg",
    "P10{n:05d}.JPG",
    "2019{m:02d}{d:02d}_1422{d:02d}.jpg",
    "Screenshot 2021-{m:02d}-{d:02d} at 10.11.{d:02d}.png",
    "image-{n}-300x200.png",
    "WhatsApp Image 2020-{m:02d}-{d:02d} at 12.04.{d:02d}.jpeg",
    "banner_final_v{d}.png",
    "thumb_{n:05d}.gif",
    "IMG-2018{m:02d}{d:02d}-WA{n:04d}",
)


@dataclass(frozen=True, kw_only=True)
class WebConfig:
    """How large the miniature web is.

    WebConfig()                # the demo
    WebConfig().scaled(0.1)    # a tenth of it, for tests
    """

    num_pairs: int = 7_000
    num_trusted: int = 1_000
    seed: int = 0

    def scaled(self, scale: float) -> "WebConfig":
        """Return the same web with `scale` times as many pairs, at least 100."""
        return replace(
            self,
            num_pairs=max(100, round(self.num_pairs * scale)),
            num_trusted=max(100, round(self.num_trusted * scale)),
        )


@dataclass(frozen=True, kw_only=True)
class Page:
    """One answer of the site; `picture` is null where no body is sent."""

    host: str
    path: str
    picture: Picture | None = None
    status: int = 200
    location: str = ""
    delay_seconds: float = 0.0
    cut_off: bool = False  # the connection ends before the body does


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One row of the list with its truth."""

    pages: tuple[Page, ...]  # the one the URL names comes first
    alt_text: str
    kind: str
    detail: str = ""
    group: int | None = None


def make_web(folder: Store, addresses: Mapping[str, str], config: WebConfig, *, progress: Progress) -> None:
    """Write the site, the lists and the truth into `folder`; nothing is done where the site is there already."""
    if folder.exists(SITE_FILE):
        return
    pairs = plan_pairs(config, addresses)
    trusted = [make_scene(_TRUSTED_SEED + index) for index in range(config.num_trusted)]
    trusted_pages = [
        Page(host="trusted", path=f"/{index:05d}.jpg", picture=Picture(scene=scene, seed=index))
        for index, scene in enumerate(trusted)
    ]
    folder.commit_table(TRUTH_FILE, _make_truth(pairs, addresses))
    folder.commit_table(URLS_FILE, _make_list([(_url(pair.pages[0], addresses), pair.alt_text) for pair in pairs]))
    texts = [captions(scene, 3) for scene in trusted]
    columns = {"url": [_url(page, addresses) for page in trusted_pages]}
    columns |= {name: [own[k % len(own)] for own in texts] for k, name in enumerate(("alt_text", "second", "third"))}
    folder.commit_table(TRUSTED_FILE, pa.table(columns))
    pages = [page for pair in pairs for page in pair.pages] + trusted_pages
    # The site goes last: once it exists, lists and truth do.
    folder.commit_table(SITE_FILE, _draw_site(pages, progress))


def plan_pairs(config: WebConfig, addresses: Mapping[str, str]) -> list[Pair]:
    """Return the list's rows in list order, every fault in its stated share."""
    random_source = random.Random(config.seed)
    kinds = [
        kind
        for kind, share in (*FAULTS.items(), *TROUBLES.items())
        for _ in range(max(1, round(share * config.num_pairs)))
    ]
    num_clean = config.num_pairs - len(kinds)
    originals = [_plan(CLEAN, index, config, random_source, addresses) for index in range(num_clean)]
    pairs: list[Pair] = []
    copied: dict[int, int] = {}
    for offset, kind in enumerate(kinds):
        index = num_clean + offset
        if kind in {"near_copy", "exact_copy"}:
            source = random_source.randrange(num_clean)
            copied[source] = source
            pairs.append(_copy(originals[source], kind, source, index, random_source))
        else:
            pairs.append(_plan(kind, index, config, random_source, addresses))
    originals = [replace(pair, group=copied.get(index)) for index, pair in enumerate(originals)]
    ordered = originals + pairs
    random_source.shuffle(ordered)
    return ordered


def _plan(kind: str, index: int, config: WebConfig, random_source: random.Random, addresses: Mapping[str, str]) -> Pair:
    scene = make_scene(_LIST_SEED + config.seed * 1_000_000 + index)
    text = caption(scene, 0)
    host = random_source.choice(("gallery", "photos", "shop", "journal"))
    page = Page(host=host, path=_path(random_source), picture=Picture(scene=scene))
    if kind == "mismatched":
        return Pair(pages=(page,), alt_text=_other_caption(scene, config, index), kind=kind)
    if kind == "boilerplate":
        return Pair(pages=(page,), alt_text=random_source.choice(_BOILERPLATE), kind=kind)
    if kind == "file_name":
        template = random_source.choice(_FILE_NAMES)
        name = template.format(
            n=random_source.randrange(10_000), m=random_source.randint(1, 12), d=random_source.randint(1, 28)
        )
        return Pair(pages=(page,), alt_text=name, kind=kind)
    if kind == "other_language":
        language = random_source.choice(LANGUAGES)
        return Pair(pages=(page,), alt_text=translate(scene, language, 0), kind=kind, detail=language)
    if kind == "painted_text":
        treatment = random_source.choice(("painted_only", "painted_over"))
        picture = Picture(scene=scene, treatment=treatment, text=text)
        return Pair(pages=(replace(page, picture=picture),), alt_text=text, kind=kind, detail=treatment)
    if kind in {"tiny", "extreme_aspect"}:
        return Pair(pages=(replace(page, picture=Picture(scene=scene, treatment=kind)),), alt_text=text, kind=kind)
    if kind == "broken_file":
        detail = random_source.choice(BROKEN_KINDS)
        picture = Picture(scene=scene, treatment=detail)
        return Pair(pages=(replace(page, picture=picture),), alt_text=text, kind=kind, detail=detail)
    return _plan_fetch(kind, page, text, random_source, addresses)


def _plan_fetch(kind: str, page: Page, text: str, random_source: random.Random, addresses: Mapping[str, str]) -> Pair:
    """Plan a row whose trouble lies in the fetch."""
    if kind == "not_found":
        detail = random_source.choice(("404", "404", "404", "410", "403", "redirect loop", "cut off"))
        if detail == "redirect loop":
            page = replace(page, picture=None, status=302, location=_url(page, addresses))
        elif detail == "cut off":
            page = replace(page, cut_off=True)
        else:
            page = replace(page, picture=None, status=int(detail))
        return Pair(pages=(page,), alt_text=text, kind=kind, detail=detail)
    if kind == "timeout":
        return Pair(pages=(replace(page, host="slow", delay_seconds=120.0),), alt_text=text, kind=kind)
    if kind == "opted_out":
        detail = random_source.choice(("X-Robots-Tag", "robots.txt"))
        if detail == "X-Robots-Tag":
            return Pair(pages=(replace(page, host="optout"),), alt_text=text, kind=kind, detail=detail)
        page = replace(page, host="private", path=f"/members{page.path}")
        return Pair(pages=(page,), alt_text=text, kind=kind, detail=detail)
    if kind == "throttled":
        return Pair(pages=(replace(page, host="busy"),), alt_text=text, kind=kind)
    if kind == "redirected":
        hops = random_source.choice((1, 1, 2, 3))
        chain = [replace(page, host="mirror", path=_path(random_source))]
        for _ in range(hops - 1):
            step = Page(host="mirror", path=_path(random_source), status=302, location=_url(chain[0], addresses))
            chain.insert(0, step)
        first = replace(page, picture=None, status=301, location=_url(chain[0], addresses))
        return Pair(pages=(first, *chain), alt_text=text, kind=kind, detail=f"{hops} hops")
    # A public page of the host whose robots.txt closes another folder, and pages of every other host.
    if random_source.random() < 0.02:
        page = replace(page, host="private", path=f"/public{page.path}")
    return Pair(pages=(page,), alt_text=text, kind=kind)


def _copy(original: Pair, kind: str, group: int, index: int, random_source: random.Random) -> Pair:
    picture = original.pages[0].picture
    assert picture is not None
    if kind == "near_copy":
        picture = replace(picture, treatment=kind, seed=index)
    page = Page(
        host=random_source.choice(("gallery", "photos", "shop", "journal")), path=_path(random_source), picture=picture
    )
    same_text = kind == "exact_copy" and random_source.random() < 0.5
    text = original.alt_text if same_text else caption(picture.scene, index)
    detail = "same caption" if text == original.alt_text else "other caption"
    return Pair(pages=(page,), alt_text=text, kind=kind, detail=detail, group=group)


def _other_caption(scene: Scene, config: WebConfig, index: int) -> str:
    """Return a caption of a scene that shares no (colour, object) pair with this one."""
    seed = _OTHER_SEED + config.seed * 1_000_000 + index * 10
    candidates = (make_scene(seed + step) for step in range(10))
    other = next(candidate for candidate in candidates if not candidate.pairs() & scene.pairs())
    return caption(other, 0)


def _path(random_source: random.Random) -> str:
    # Nothing in an address may tell what is behind it.
    return f"/img/{random_source.getrandbits(60):015x}.jpg"


def _url(page: Page, addresses: Mapping[str, str]) -> str:
    return f"http://{addresses[page.host]}{page.path}"


def _make_list(rows: Sequence[tuple[str, str]]) -> pa.Table:
    return pa.table({"url": [url for url, _ in rows], "alt_text": [text for _, text in rows]})


def _make_truth(pairs: Sequence[Pair], addresses: Mapping[str, str]) -> pa.Table:
    rows = []
    for pair in pairs:
        url = _url(pair.pages[0], addresses)
        values = {"url": url, "alt_text": pair.alt_text, "kind": pair.kind, "detail": pair.detail, "group": pair.group}
        rows.append({"uid": sample_uid(url, pair.alt_text), **values})
    return pa.Table.from_pylist(rows, schema=TRUTH_SCHEMA)


def _draw_site(pages: Sequence[Page], progress: Progress) -> pa.Table:
    bodies = draw_all([page.picture for page in pages if page.picture], progress)
    files = [next(bodies) if page.picture else b"" for page in pages]
    names = [host.value for host in Host]
    return pa.table(
        {
            "host": [names.index(page.host) for page in pages],
            "path": [page.path for page in pages],
            "status": [page.status for page in pages],
            "location": [page.location for page in pages],
            "delay_seconds": [page.delay_seconds for page in pages],
            "cut_off": [page.cut_off for page in pages],
            "body": files,
        },
        schema=SITE_SCHEMA,
    )
