"""The miniature web: faults in stated shares, files as planted, a site that behaves, a truth nobody else reads."""

import ast
import http.client
import io
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

import pipelines.demo
from curate.store import Store
from pipelines.demo.picture import Picture, make_body
from pipelines.demo.scenes import make_scene
from pipelines.demo.server import Host, Listener, listen, serve
from pipelines.demo.web import (
    CLEAN,
    FAULTS,
    SITE_FILE,
    TROUBLES,
    TRUSTED_FILE,
    TRUTH_FILE,
    URLS_FILE,
    Pair,
    WebConfig,
    make_web,
    plan_pairs,
)
from schemas.errors import InputError
from schemas.progress import SilentProgress
from schemas.uid import sample_uid

ADDRESSES = {host.value: f"{host.value}.test" for host in Host}
PAIRS = plan_pairs(WebConfig(), ADDRESSES)


def _of(kind: str) -> list[Pair]:
    return [pair for pair in PAIRS if pair.kind == kind]


def test_faults_have_their_stated_shares() -> None:
    counts = Counter(pair.kind for pair in PAIRS)
    assert len(PAIRS) == WebConfig().num_pairs
    for kind, share in {**FAULTS, **TROUBLES}.items():
        assert counts[kind] == round(share * len(PAIRS)), kind
    assert counts[CLEAN] == len(PAIRS) - sum(counts[kind] for kind in (*FAULTS, *TROUBLES))


def test_planning_is_deterministic_and_mixes_the_kinds() -> None:
    assert plan_pairs(WebConfig(), ADDRESSES) == PAIRS
    assert plan_pairs(WebConfig(seed=1), ADDRESSES) != PAIRS
    assert len({pair.kind for pair in PAIRS[:200]}) > 10


def test_every_row_has_its_own_url() -> None:
    assert len({(pair.pages[0].host, pair.pages[0].path) for pair in PAIRS}) == len(PAIRS)


def test_mismatched_captions_name_nothing_that_is_shown() -> None:
    for pair in _of("mismatched"):
        picture = pair.pages[0].picture
        assert picture is not None
        for colour, name in picture.scene.pairs():
            assert f"{colour} {name}" not in pair.alt_text.lower()


def test_copies_share_a_group_with_their_original() -> None:
    originals = {pair.group: pair for pair in _of(CLEAN) if pair.group is not None}
    for pair in _of("exact_copy"):
        assert pair.pages[0].picture == originals[pair.group].pages[0].picture
        assert pair.pages[0].path != originals[pair.group].pages[0].path
    for pair in _of("near_copy"):
        original, copy = originals[pair.group].pages[0].picture, pair.pages[0].picture
        assert original is not None and copy is not None
        assert copy.scene == original.scene
        assert make_body(copy) != make_body(original)
    details = Counter(pair.detail for pair in _of("exact_copy"))
    assert set(details) == {"same caption", "other caption"}


def test_spoiled_files_are_spoiled_as_planned() -> None:
    scene = make_scene(4)
    good = make_body(Picture(scene=scene))
    assert make_body(Picture(scene=scene)) == good
    assert make_body(Picture(scene=scene, treatment="empty")) == b""
    assert make_body(Picture(scene=scene, treatment="html")).startswith(b"<!doctype html>")
    truncated = make_body(Picture(scene=scene, treatment="truncated"))
    assert good.startswith(truncated) and len(truncated) < 0.9 * len(good)
    corrupt = make_body(Picture(scene=scene, treatment="corrupt"))
    assert len(corrupt) == len(good) and corrupt[:200] == good[:200] and corrupt[-2:] == good[-2:] and corrupt != good
    tiny = Image.open(io.BytesIO(make_body(Picture(scene=scene, treatment="tiny"))))
    assert max(tiny.size) <= 40
    banner = Image.open(io.BytesIO(make_body(Picture(scene=scene, treatment="extreme_aspect"))))
    assert max(banner.size) / min(banner.size) > 6
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(make_body(Picture(scene=scene, treatment="html"))))


def test_painted_text_adds_dark_letters_on_a_pale_strip() -> None:
    scene = make_scene(4)
    plain = Image.open(io.BytesIO(make_body(Picture(scene=scene)))).convert("L")
    painted = Image.open(
        io.BytesIO(make_body(Picture(scene=scene, treatment="painted_over", text="a red car")))
    ).convert("L")
    middle = painted.height // 2
    strip = painted.crop((0, middle - 8, painted.width, middle + 8)).tobytes()
    assert min(strip) < 70 and sum(value > 220 for value in strip) > 0.5 * len(strip)
    assert plain.size == painted.size and plain.crop((0, 0, plain.width, 10)).size == (plain.width, 10)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Listener]]:
    folder = Store(tmp_path_factory.mktemp("demo"))
    with listen(folder, port=0) as listener:
        make_web(folder, listener.addresses, WebConfig().scaled(0.03), progress=SilentProgress())
        with serve(listener, folder.locate(SITE_FILE), Path(folder.locate("web/server.log"))):
            yield folder, listener


def _get(url: str, timeout: float = 20.0) -> tuple[int, Mapping[str, str], bytes]:
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=timeout)
    try:
        connection.request("GET", f"/{path}")
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def _urls(folder: Store, kind: str, detail: str | None = None) -> list[str]:
    rows = folder.read_table(TRUTH_FILE).to_pylist()
    return [row["url"] for row in rows if row["kind"] == kind and detail in (None, row["detail"])]


def test_the_list_and_the_truth_hold_the_same_rows_and_the_list_says_nothing_more(web: tuple[Store, Listener]) -> None:
    folder, _ = web
    truth = folder.read_table(TRUTH_FILE)
    urls = folder.read_table(URLS_FILE)
    assert urls.column_names == ["url", "alt_text"]
    assert urls["url"].to_pylist() == truth["url"].to_pylist()
    assert truth["uid"].to_pylist() == [
        sample_uid(url, text) for url, text in zip(*(urls[name].to_pylist() for name in urls.column_names), strict=True)
    ]
    assert folder.read_table(TRUSTED_FILE).column_names == ["url", "alt_text", "second", "third"]
    assert not folder.list_names("inputs", "truth.parquet")


def test_making_the_web_again_changes_nothing(web: tuple[Store, Listener]) -> None:
    folder, listener = web
    before = folder.read_bytes(SITE_FILE)
    make_web(folder, listener.addresses, WebConfig(seed=5), progress=SilentProgress())
    assert folder.read_bytes(SITE_FILE) == before


def test_sound_pages_are_pictures(web: tuple[Store, Listener]) -> None:
    folder, _ = web
    for url in _urls(folder, CLEAN)[:20]:
        status, headers, body = _get(url)
        assert (status, headers["Content-Type"]) == (200, "image/jpeg")
        Image.open(io.BytesIO(body)).load()


def test_redirects_lead_to_a_picture_and_loops_do_not_end(web: tuple[Store, Listener]) -> None:
    folder, _ = web
    for url in _urls(folder, "redirected"):
        hops = 0
        status, headers, body = _get(url)
        while status in {301, 302}:
            hops += 1
            status, headers, body = _get(headers["Location"])
        assert status == 200 and body and 1 <= hops <= 3
    for url in _urls(folder, "not_found", "redirect loop"):
        assert _get(url)[1]["Location"] == url


def test_missing_pages_say_so(web: tuple[Store, Listener]) -> None:
    folder, _ = web
    for status in (404, 410, 403):
        for url in _urls(folder, "not_found", str(status)):
            assert _get(url)[0] == status
    for url in _urls(folder, "not_found", "cut off"):
        with pytest.raises(http.client.IncompleteRead):
            _get(url)
    assert _get(f"{_urls(folder, CLEAN)[0]}x")[0] == 404


def test_the_busy_host_refuses_at_first(web: tuple[Store, Listener]) -> None:
    folder, listener = web
    url = _urls(folder, "throttled")[0]
    status, headers, _ = _get(url)
    assert (status, headers["Retry-After"]) == (429, "1")
    answers = [_get(url)[0] for _ in range(20)]
    assert answers[-1] == 200 and answers == sorted(answers, reverse=True)
    assert listener.addresses["busy"] in url


def test_opt_outs_are_declared(web: tuple[Store, Listener]) -> None:
    folder, listener = web
    for url in _urls(folder, "opted_out", "X-Robots-Tag"):
        assert "noai" in _get(url)[1]["X-Robots-Tag"]
    for url in _urls(folder, "opted_out", "robots.txt"):
        assert url.startswith(f"http://{listener.addresses['private']}/members/")
    assert b"Disallow: /members/" in _get(f"http://{listener.addresses['private']}/robots.txt")[2]
    assert _get(f"http://{listener.addresses['photos']}/robots.txt")[0] == 404


def test_the_slow_host_does_not_answer(web: tuple[Store, Listener]) -> None:
    folder, _ = web
    with pytest.raises(TimeoutError):
        _get(_urls(folder, "timeout")[0], timeout=0.5)


def test_a_taken_address_is_named(web: tuple[Store, Listener]) -> None:
    folder, listener = web
    with pytest.raises(InputError, match=f"{listener.addresses['gallery']}.* is taken.*another --out"), listen(folder):
        pass


def test_the_server_ends_with_the_demo(tmp_path: Path) -> None:
    folder = Store(tmp_path)
    with listen(folder, port=0) as listener:
        make_web(folder, listener.addresses, WebConfig(num_pairs=100, num_trusted=1), progress=SilentProgress())
        with serve(listener, folder.locate(SITE_FILE), tmp_path / "log"):
            assert _get(_urls(folder, CLEAN)[0])[0] == 200
    start = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        _get(_urls(folder, CLEAN)[0])
    assert time.monotonic() - start < 5


def test_only_the_comparison_reads_the_truth() -> None:
    (folder,) = pipelines.demo.__path__
    root = Path(folder).parent.parent
    modules = [path for name in ("schemas", "curate", "train", "pipelines") for path in (root / name).rglob("*.py")]
    assert len(modules) > 50
    readers, importers = set(), set()
    for path in modules:
        tree = ast.parse(path.read_text())
        texts = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        relative = path.relative_to(root).as_posix()
        if "TRUTH_FILE" in names or "truth.parquet" in texts:
            readers.add(relative)
        if "read_truth" in names:
            importers.add(relative)
    # One writes it, one reads it, and only the end of the demo asks for it.
    assert readers == {"pipelines/demo/web.py", "pipelines/demo/compare.py"}
    assert importers == {"pipelines/demo/demo.py"}


_DRAWING = """
from pipelines.demo.picture import Picture, draw_all
from pipelines.demo.scenes import make_scene
from schemas.progress import SilentProgress

if __name__ == "__main__":
    for data in draw_all([Picture(scene=make_scene(seed)) for seed in range(100_000)], SilentProgress()):
        print(len(data), flush=True)
"""


def test_drawing_processes_end_with_a_demo_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "draw.py"
    script.write_text(_DRAWING)
    root = Path(pipelines.demo.__path__[0]).parent.parent
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}) as process:
        assert process.stdout is not None
        process.stdout.readline()
        children = _children(process.pid)
        assert len(children) >= 2
        process.kill()
    deadline = time.monotonic() + 20
    while any(_is_running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(_is_running(child) for child in children)


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(path.parent.name))
    return found


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
