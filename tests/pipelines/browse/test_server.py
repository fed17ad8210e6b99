"""The answers over real HTTP: pages, pictures with their caching, decisions, and errors without tracebacks."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from curate.select import Selection, select
from curate.store import Pool
from pipelines.browse.server import to_json
from tests.curate.pool_builder import annotated_pool
from tests.pipelines.browse.serving import Served, serve
from tests.pool import Row, make_rows, write_shard

SVG = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
HOSTILE = "</script><img src=x onerror=alert(1)> \U0001f600"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    made = annotated_pool(tmp_path_factory.mktemp("server") / "pool")
    rows = [Row(url="javascript:alert(1)", caption=HOSTILE, image=make_rows(1)[0].image), *make_rows(12, seed=7)[1:]]
    write_shard(made, 3, rows, shard_size=12)
    select(made, Selection(name="mine", rules={"long": "length(alt_text) > 30"}))
    return made


@pytest.fixture(scope="module")
def served(pool: Pool) -> Iterator[Served]:
    with serve(pool, selection="") as found:
        yield found


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as found:
        yield found


def test_the_page_and_its_files(client: httpx.Client) -> None:
    page = client.get("/")
    assert "text/html" in page.headers["content-type"]
    assert "<script>" not in page.text
    for name in ("theme.css", "browse.css", "browse.js", "format.js", "grid.js", "panel.js", "sliders.js", "state.js"):
        assert client.get(f"/static/{name}").status_code == 200
        assert name in page.text or name.endswith(".js")
    for name in ("..%2f..%2f__init__.py", "index.html", "%2e%2e/server.py", "browse.js/x"):
        assert client.get(f"/static/{name}").status_code == 404


def test_pages_of_rows(client: httpx.Client) -> None:
    first = client.get("/api/grid", params={"limit": 5}).json()
    assert (first["num_rows"], first["offset"], len(first["rows"])) == (48, 0, 5)
    last = client.get("/api/grid", params={"limit": 5, "offset": 1000}).json()
    assert (last["offset"], len(last["rows"])) == (45, 3)
    uid = client.get("/api/grid", params={"limit": 1, "offset": 17}).json()["rows"][0]["uid"]
    around = client.get("/api/grid", params={"limit": 5, "around": uid}).json()
    assert (around["offset"], around["rows"][2]["uid"]) == (15, uid)
    nothing = client.get("/api/grid", params={"filter": "false"}).json()
    assert (nothing["num_rows"], nothing["rows"]) == (0, [])


def test_pictures_are_cached_for_good(client: httpx.Client, pool: Pool) -> None:
    rows = client.get("/api/grid", params={"limit": 12}).json()["rows"]
    assert [row["image"] is None for row in rows] == [number in (1, 3) for number in range(12)]
    found = client.get(rows[0]["image"])
    assert found.content == make_rows(12)[0].image
    assert found.headers["content-type"] == "image/jpeg"
    assert "immutable" in found.headers["cache-control"]
    assert "private" in found.headers["cache-control"]
    assert "sandbox" in found.headers["content-security-policy"]
    again = client.get(rows[0]["image"], headers={"if-none-match": found.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    digest = rows[0]["image"].rpartition("/")[2]
    for path in (
        f"/image/99/0/{digest}",
        f"/image/0/12/{digest}",
        "/image/0/0/0123456789abcdef",
        f"/image/-1/0/{digest}",
    ):
        assert client.get(path).status_code == 404


def test_a_picture_that_is_none_is_not_sent(tmp_path: Path) -> None:
    pool = Pool(tmp_path / "pool")
    rows = make_rows(3)
    write_shard(pool, 0, rows, shard_size=3)
    tar = Path(pool.locate("shards/00000.tar"))
    image = rows[0].image or b""
    # The same length, so that the tar stays whole.
    tar.write_bytes(tar.read_bytes().replace(image, SVG.ljust(len(image))))
    with serve(pool) as served, served.client() as client:
        path = client.get("/api/grid").json()["rows"][0]["image"]
        answer = client.get(path)
    assert answer.status_code == 415
    assert answer.headers["content-type"] == "application/json"
    assert b"svg" not in answer.content


def test_one_sample_in_full(client: httpx.Client) -> None:
    row = client.get("/api/grid", params={"selection": "mine", "offset": 36, "limit": 1}).json()["rows"][0]
    found = client.get("/api/sample", params={"uid": row["uid"]}).json()
    assert found["alt_text"] == HOSTILE
    assert found["link"] == ""
    assert found["selections"][0]["rules"][0]["rule"] == "downloaded"
    assert set(found["labels"]) >= {"b32", "words", "recap"}
    other = client.get("/api/sample", params={"uid": client.get("/api/grid").json()["rows"][0]["uid"]}).json()
    assert other["link"] == "https://example.org/0/0.jpg"
    assert client.get("/api/sample", params={"uid": "x' OR 1=1 --"}).status_code == 400


def test_rules_and_columns(client: httpx.Client) -> None:
    rules = client.get("/api/rules", params={"selection": "mine"}).json()["rules"]
    assert rules[1] == {"name": "long", "sql": "length(alt_text) > 30"}
    column = client.get("/api/column", params={"name": "b32.clip_score"}).json()
    assert sum(column["bins"]) == column["num_values"] == 36
    found = client.get("/api/count", params={"filter": "width > 1", "range": "b32.clip_score:1.."}).json()
    assert found["rule"] == "(width > 1\n) AND b32.clip_score >= 1"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/api/count?filter=clip_scor+%3E+1", "did you mean"),
        ("/api/count?filter=1%3B+DROP+TABLE+pool", "not a condition"),
        ("/api/grid?limit=100000", "whole number from 0 to 240"),
        ("/api/grid?offset=-1", "whole number"),
        ("/api/count?range=x", "is not COLUMN:LOW..HIGH"),
        ("/api/column?name=nothing", "no numeric column"),
        ("/api/rules?selection=../../etc", "has no selection"),
        ("/api/count?selection=mine&outcome=x", "is not kept, dropped or rule:NAME"),
        ("/api/count?" + "&".join(f"a{number}=1" for number in range(101)), "more than 100 parameters"),
    ],
)
def test_mistakes_are_explained(client: httpx.Client, path: str, message: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 400
    assert message in answer.json()["error"]
    assert "Traceback" not in answer.text
    assert 'File "' not in answer.text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[1]", 400),
        (b'{"uids": "x", "decision": "keep"}', 400),
        (b'{"uids": [], "decision": "keep"}', 400),
        (b'{"uids": [1], "decision": "keep"}', 400),
        (b'{"uids": ["nobody"], "decision": "keep"}', 400),
        (b'{"uids": ["nobody"], "decision": ["keep"]}', 400),
        (b"[" * 50_000, 400),
        (json.dumps({"uids": ["x"] * 241, "decision": "keep"}).encode(), 400),
        (b" " * 70_000, 413),
    ],
)
def test_bodies_that_are_none_are_refused(client: httpx.Client, body: bytes, status: int) -> None:
    answer = client.post("/api/decide", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, "Traceback" in answer.text) == (status, False)


def test_decisions(client: httpx.Client) -> None:
    uids = [row["uid"] for row in client.get("/api/grid").json()["rows"][:3]]
    answer = client.post("/api/decide", json={"uids": uids[:2], "decision": "flag"})
    assert answer.json() == {"decided": dict.fromkeys(uids[:2], "flag")}
    assert client.post("/api/decide", json={"uids": uids[:1], "decision": "burn"}).status_code == 400
    assert client.get("/api/count").json()["decisions"]["flag"] == 2
    assert [row["decision"] for row in client.get("/api/grid").json()["rows"][:3]] == ["flag", "flag", None]
    client.post("/api/decide", json={"uids": uids, "decision": None})
    assert client.get("/api/count").json()["decisions"]["flag"] == 0


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(client: httpx.Client, method: str) -> None:
    answer = client.request(method, "/api/count", headers={"content-type": "application/json"})
    assert answer.status_code == 405


def test_json_holds_everything() -> None:
    values = {"a": [float("nan"), float("inf"), 1.5, None, True], "b": "x\ud800", 3: (b"x",)}
    assert to_json(values) == {"a": ["nan", "inf", 1.5, None, True], "b": "x?", "3": ["b'x'"]}
