"""Who is let in: by token or cookie, under this server's names, and for changes from its own page only."""

from collections.abc import Iterator

import httpx
import pytest

from pipelines.browse.access import Access, is_loopback
from pipelines.browse.query import Query
from schemas.errors import InputError
from tests.curate.pool_builder import annotated_pool
from tests.pipelines.browse.serving import Served, serve


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(annotated_pool(tmp_path_factory.mktemp("access") / "pool", num_shards=1)) as found:
        yield found


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as found:
        yield found


@pytest.mark.parametrize("path", ["/", "/api/pool", "/api/grid", "/static/browse.js", "/image/0/0/x", "/nothing"])
def test_nothing_is_told_without_the_token(served: Served, path: str) -> None:
    for query in ("", "?token=", "?token=wrong", f"?token={served.access.token[:-1]}", "?token=" + "\u00e9"):
        answer = httpx.get(f"{served.base}{path}{query}")
        assert answer.status_code == 401
        assert "winnow browse" in answer.json()["error"]
        assert "set-cookie" not in answer.headers


def test_the_token_is_exchanged_for_a_cookie(served: Served) -> None:
    answer = httpx.get(served.url)
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert served.access.token not in cookie
    assert served.access.token not in answer.text
    value = cookie.partition(";")[0]
    assert httpx.get(f"{served.base}/api/pool", headers={"cookie": value}).status_code == 200
    assert httpx.get(f"{served.base}/api/pool", headers={"cookie": value[:-1]}).status_code == 401
    assert httpx.get(f"{served.base}/api/pool", headers={"cookie": "; \x7f=;;"}).status_code in (400, 401)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example:80",
        "10.0.0.1",
        "",
        "a@127.0.0.1",
        "127.0.0.1/x",
        "[::1",
        "0x7f.1",
    ],
)
def test_a_name_that_somebody_points_here_is_not_ours(served: Served, host: str) -> None:
    """DNS rebinding: the browser would send the request, with the cookie of that name or none."""
    answer = httpx.get(served.url, headers={"host": host})
    assert answer.status_code in (400, 421)
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.2:99", "[::1]:8080"])
def test_names_of_this_machine_are_ours(served: Served, host: str) -> None:
    assert httpx.get(served.url, headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_changes_come_from_our_own_page(
    served: Served, client: httpx.Client, headers: dict[str, str], status: int
) -> None:
    uid = client.get("/api/grid").json()["rows"][0]["uid"]
    content = f'{{"uids": ["{uid}"], "decision": "drop"}}'
    answer = client.post("/api/decide", content=content, headers={"content-type": "application/json", **headers})
    assert answer.status_code == status
    assert served.view.count(Query()).decisions["drop"] == 0


def test_a_token_in_the_address_changes_nothing(served: Served) -> None:
    """A link with the token may be followed by anybody's page; only the cookie decides."""
    answer = httpx.post(
        f"{served.base}/api/decide?token={served.access.token}", json={}, headers={"origin": served.base}
    )
    assert answer.status_code == 401


def test_every_answer_is_guarded(served: Served, client: httpx.Client) -> None:
    for path in ("/", "/api/pool", "/static/browse.css", "/nothing", "/api/count?filter=x"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "server" not in headers
    assert (
        "access-control-allow-origin" not in client.get("/api/pool", headers={"origin": "http://evil.example"}).headers
    )


def test_other_machines_are_let_in_only_when_told() -> None:
    with pytest.raises(InputError, match=r"SSH tunnel.*or give --allow-remote"):
        Access(host="0.0.0.0")
    with pytest.raises(InputError, match="--allow-remote"):
        Access(host="example.org")
    with pytest.raises(InputError, match="--no-token is for this machine only"):
        Access(host="0.0.0.0", allow_remote=True, token="")
    remote = Access(host="0.0.0.0", allow_remote=True)
    assert remote.knows("192.168.1.5:8080")
    assert not remote.knows("evil.example")
    assert not Access().knows("192.168.1.5:8080")


def test_tokens_are_long_and_new() -> None:
    tokens = {Access().token for _ in range(20)}
    assert len(tokens) == 20
    assert min(map(len, tokens)) >= 32
    assert Access(token="abc").opens("abc")
    assert not Access(token="abc").opens("abcd")


def test_loopback() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.1.2.3", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "example.org", ""]))
