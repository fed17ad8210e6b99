"""What every test may ask for: one thread per library, no GPU unless asked for, one Ray for the whole session, a small pool."""

# ruff: noqa: E402  (the environment comes first)

import os
import signal

# A run in a shell's background ignores Ctrl-C, and so would every process that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Before numpy or torch are imported: their thread pools fight each other on small machines.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# A run that sets its own number of threads must not spin while it waits: other tests have the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Tests compare with what a CPU's arithmetic gives: on a GPU models run in half precision by themselves, and one kernel that fails takes
# along all later tests of its process. Overwritten, because schedulers and containers set it; before torch is imported, which reads it once.
if not os.environ.get("WINNOW_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from curate.executor import Executor
from curate.store import Pool
from tests.browser import chromium, open_page  # noqa: F401  (fixtures; one Chromium for all modules)
from tests.pool import make_pool


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none to be seen."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and `make test-gpu` (WINNOW_TEST_GPU=1 pytest -m gpu)")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Executor]:
    """An executor whose Ray is up for the whole session; any other `Executor()` made in a test uses the same Ray."""
    with Executor(num_workers=2) as executor:
        executor.start()
        yield executor


@pytest.fixture
def keep_threads() -> Iterator[None]:
    """Put back the number of torch's threads, which every run sets for itself: `pytestmark = pytest.mark.usefixtures("keep_threads")`."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_pool(tmp_path: Path) -> Pool:
    """Two shards of twelve rows; `tests.pool` names the rows that are special."""
    return make_pool(tmp_path / "pool")


@pytest.fixture
def pool_builder(tmp_path: Path) -> Callable[..., Pool]:
    """Return `make_pool` bound to a folder: `pool_builder(num_shards=3, shard_size=40, seed=1, name="other")`."""

    def build(*, name: str = "pool", num_shards: int = 2, shard_size: int = 12, seed: int = 0) -> Pool:
        return make_pool(tmp_path / name, num_shards=num_shards, shard_size=shard_size, seed=seed)

    return build
