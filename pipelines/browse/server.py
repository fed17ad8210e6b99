"""The HTTP server over a view: a page, its files, and answers in JSON. Nothing here is slow on the event loop: work runs in threads."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from curate.images import ImageError
from curate.operators.manual import DECISIONS
from pipelines.browse.access import CONTENT_POLICY, PAGE_POLICY
from pipelines.browse.pictures import Pictures
from pipelines.browse.query import DEFAULT_PAGE, MAX_PAGE, Query, parse_text, parse_whole
from pipelines.browse.rows import texts_of
from pipelines.browse.view import TEXT_SORTS, View
from pipelines.page.template import make_environment, theme, web_url
from pipelines.page.words import shorten
from schemas.errors import InputError, WinnowError
from schemas.sample import STATUS_SUCCESS

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent / "page"
_FILES = {
    "browse.css": "text/css; charset=utf-8",
    "browse.js": "text/javascript; charset=utf-8",
    "format.js": "text/javascript; charset=utf-8",
    "grid.js": "text/javascript; charset=utf-8",
    "panel.js": "text/javascript; charset=utf-8",
    "sliders.js": "text/javascript; charset=utf-8",
    "state.js": "text/javascript; charset=utf-8",
}
_THEME_FILE = "theme.css"
_MAX_PARAMETERS = 100
_MAX_BODY = 64 << 10
_MAX_DECIDED = MAX_PAGE
# Of a grid; the panel has the whole text.
_GRID_TEXT = 400
_WHOLE_TEXT = 100_000
# A picture under its shard's digest never changes.
_FOREVER = "private, max-age=31536000, immutable"

Parameters = Mapping[str, list[str]]
_Answer = Callable[["Site", Parameters], Mapping[str, Any]]


class Site:
    """The answers of the server, apart from HTTP."""

    def __init__(self, view: View, *, selection: str = "") -> None:
        self.view = view
        self.pictures = Pictures(view.pool)
        self.selection = selection

    def pool(self, _: Parameters) -> dict[str, Any]:
        """Return what the page needs before it asks for anything else."""
        labels = [label for label, columns in self.view.catalog.label_columns.items() for _ in columns[:1]]
        columns = [f"samples.{name}" for name in self.view.catalog.sample_columns]
        columns += [f"{label}.{name}" for label in labels for name in self.view.catalog.label_columns[label]]
        return {
            "root": self.view.pool.root,
            "num_rows": len(self.view.rows),
            "numbers": self.view.numbers.names,
            "columns": columns,
            "captions": self.view.rows.captions,
            "selections": self.view.selections,
            "selection": self.selection,
            "text_sorts": TEXT_SORTS,
            "decisions": DECISIONS,
            "page_size": DEFAULT_PAGE,
        }

    def column(self, parameters: Parameters) -> dict[str, Any]:
        """Return what a slider shows of a column."""
        return asdict(self.view.numbers.summarise(parse_text(parameters, "name")))

    def count(self, parameters: Parameters) -> dict[str, Any]:
        """Return how many rows a query has."""
        query = Query.parse(parameters)
        return {**asdict(self.view.count(query)), "rule": query.to_rule()}

    def rules(self, parameters: Parameters) -> dict[str, Any]:
        """Return the rules of a selection."""
        verdicts = self.view.verdicts(parse_text(parameters, "selection"))
        return {"folder": verdicts.folder, "rules": [asdict(rule) for rule in verdicts.rules]}

    def grid(self, parameters: Parameters) -> dict[str, Any]:
        """Return a page of rows; an offset past the end gives the last page."""
        query = Query.parse(parameters)
        limit = max(1, parse_whole(parameters, "limit", DEFAULT_PAGE, MAX_PAGE))
        offset = parse_whole(parameters, "offset", 0)
        positions = self.view.find(query)
        if uid := parse_text(parameters, "around"):
            # The page that holds a sample, where the query has it: so that an address leads to what it was copied from.
            places = (positions == self.view.locate(uid)).nonzero()[0]
            offset = int(places[0]) // limit * limit if len(places) else offset
        if offset >= len(positions):
            offset = max(0, (len(positions) - 1) // limit * limit)
        found = self.view.describe(positions[offset : offset + limit].tolist(), query)
        return {"num_rows": len(positions), "offset": offset, "rows": [self._card(row) for row in found]}

    def sample(self, parameters: Parameters) -> dict[str, Any]:
        """Return everything about a sample that `winnow why` knows."""
        position = self.view.locate(parse_text(parameters, "uid"))
        (row,) = self.view.describe([position], Query(selection=parse_text(parameters, "selection")))
        found = self.view.explain(position).to_dict()
        return {
            **self._card(row, most=_WHOLE_TEXT),
            "captions_full": found["captions"],
            **{name: found[name] for name in ("sample", "labels", "copies", "selections")},
            "link": web_url(row.get("url")),
        }

    def decide(self, content: object) -> dict[str, Any]:
        """Keep, drop or flag samples, or take that back."""
        uids = content.get("uids") if isinstance(content, dict) else None
        decision = content.get("decision", "") if isinstance(content, dict) else ""
        is_list = isinstance(uids, list) and 0 < len(uids) <= _MAX_DECIDED and all(isinstance(uid, str) for uid in uids)
        if not isinstance(uids, list) or not is_list or not (decision is None or isinstance(decision, str)):
            raise InputError(
                f'send {{"uids": [...], "decision": "keep"}} with 1 to {_MAX_DECIDED} uids and a decision of '
                f"{', '.join(DECISIONS)} or null"
            )
        found = self.view.rows.find(uids)
        unknown = next((uid for uid in uids if uid not in found), None)
        if unknown is not None:
            raise InputError(f"the pool has no sample {unknown[:64]!r}; load the page again")
        self.view.decide([found[uid] for uid in uids], decision)
        return {"decided": {uid: self.view.decision(found[uid]) for uid in uids}}

    def _card(self, row: Mapping[str, Any], most: int = _GRID_TEXT) -> dict[str, Any]:
        place = self.view.place(row["position"])
        has_image = row["status"] == STATUS_SUCCESS
        image = f"/image/{place.header.shard}/{place.row}/{place.header.shard_digest[:16]}" if has_image else None
        captions = texts_of(row, self.view.rows.captions)
        shown = ("uid", "url", "status", "error_message", "width", "height", "decision", "outcome", "sort_value")
        return {
            **{name: row.get(name) for name in shown},
            "alt_text": row["alt_text"] and shorten(row["alt_text"], most),
            "captions": {name: _shorten(text, most) for name, text in captions.items()},
            "image": image,
        }


def make_app(site: Site) -> Starlette:
    """Return the application; `pipelines.browse.access` stands before it."""

    async def page(_: Request) -> Response:
        template = make_environment(_FOLDER).get_template("index.html")
        text = template.render(root=site.view.pool.root, policy=CONTENT_POLICY)
        return HTMLResponse(text, headers={"content-security-policy": PAGE_POLICY})

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name == _THEME_FILE:
            return Response(str(theme()), media_type="text/css; charset=utf-8", headers={"cache-control": "no-cache"})
        if name not in _FILES:
            raise HTTPException(404, f"no file {name[:100]!r}")
        text = (_FOLDER / name).read_text(encoding="utf-8")
        return Response(text, media_type=_FILES[name], headers={"cache-control": "no-cache"})

    async def image(request: Request) -> Response:
        return await run_in_threadpool(_image, site, request)

    async def decide(request: Request) -> Response:
        content = _parse_body(await _read_body(request))
        return JSONResponse(await run_in_threadpool(site.decide, content))

    routes = [
        Route("/", page),
        Route("/static/{name}", file),
        Route("/image/{shard:int}/{row:int}/{digest}", image),
        Route("/api/decide", decide, methods=["POST"]),
        *(Route(f"/api/{answer.__name__}", _endpoint(site, answer)) for answer in _ANSWERS),
    ]
    handlers: dict[Any, Any] = {
        WinnowError: _answer_user_error,
        OSError: _answer_system_error,
        HTTPException: _answer_http_error,
    }
    return Starlette(routes=routes, exception_handlers=handlers)


_ANSWERS: tuple[_Answer, ...] = (Site.pool, Site.column, Site.count, Site.rules, Site.grid, Site.sample)


def _endpoint(site: Site, answer: _Answer) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        return JSONResponse(to_json(await run_in_threadpool(answer, site, _parameters(request))))

    return endpoint


def _image(site: Site, request: Request) -> Response:
    shard, row = request.path_params["shard"], request.path_params["row"]
    position = site.view.rows.position(shard, row)
    if position is None:
        raise HTTPException(404, f"the pool has no row {row} in shard {shard}")
    header = site.view.place(position).header
    if request.path_params["digest"] != header.shard_digest[:16]:
        raise HTTPException(404, "that shard has changed; load the page again")
    tag = f'"{header.shard_digest[:16]}-{row}"'
    headers = {"etag": tag, "cache-control": _FOREVER, "vary": "cookie"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    try:
        picture = site.pictures.read(header, str(site.view.rows.value("key", position)))
    except ImageError as error:
        raise HTTPException(415, f"no picture to show: {error}") from error
    return Response(picture.data, media_type=picture.media_type, headers=headers)


def _parameters(request: Request) -> Parameters:
    try:
        return parse_qs(request.url.query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError as error:
        raise InputError(f"the address has more than {_MAX_PARAMETERS} parameters; use fewer sliders") from error


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY:
            raise HTTPException(413, f"a request may have {_MAX_BODY >> 10} KiB; decide about fewer samples at once")
    return bytes(body)


def _parse_body(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError("the request is not JSON") from error


def to_json(value: Any) -> Any:
    """Return a value as JSON can hold it: NaN and infinities, dates and bytes as texts; lone surrogates replaced."""
    if isinstance(value, Mapping):
        return {str(key): to_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value if value is None or isinstance(value, bool | int | float) else str(value)


async def _answer_user_error(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": shorten(str(error), 2_000)}, status_code=400)


async def _answer_system_error(_: Request, error: Exception) -> Response:
    logger.warning("a request failed error=%s", error)
    return JSONResponse({"error": f"a file of the pool could not be read or written: {error}"}, status_code=500)


async def _answer_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code)


def _shorten(text: Any, most: int) -> Any:
    return shorten(text, most) if isinstance(text, str) else [shorten(str(each), most) for each in text]
