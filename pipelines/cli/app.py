"""The application: errors become messages, options that several commands share, and where output goes."""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib.metadata import version
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer
from rich.console import Console, RenderableType
from typer.core import TyperGroup

from pipelines.cli.failure import explain_os_error, explain_store_error, is_from_store
from schemas.errors import ShardError, WinnowError

if TYPE_CHECKING:
    from curate.executor import Executor
    from curate.store import Pool
    from schemas.progress import Progress

EXIT_SHARDS = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
# Tables that go to a file or a pipe are this wide.
PIPE_WIDTH = 160

# Read by libraries when they are imported: no telemetry, no calls home, no thread pools that fight each other.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait take a shared machine's cores from the work they wait for
    "TOKENIZERS_PARALLELISM": "false",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers shows one whenever it opens a folder
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "disabled",
}


class _Commands(TyperGroup):
    """Turns errors into one message and an exit code."""

    def invoke(self, ctx: Any) -> object:  # typer brings its own copy of click, whose context has no public name
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        handle_interrupts(signal.default_int_handler)
        is_verbose = bool(ctx.params.get("verbose"))
        _configure_logging(is_verbose)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            message = str(error) or "stopped; what is finished is kept, and the same command goes on from there"
            _end(ctx, EXIT_INTERRUPTED, message)
        except Exception as error:
            if is_verbose:
                logging.getLogger(__name__).error("traceback", exc_info=True)
            if isinstance(error, WinnowError):
                _end(ctx, EXIT_SHARDS if isinstance(error, ShardError) else EXIT_ERROR, f"error: {error}")
            if isinstance(error, OSError):
                _end(ctx, EXIT_ERROR, f"error: {explain_os_error(error)}")
            if is_from_store(error):
                _end(ctx, EXIT_ERROR, f"error: {explain_store_error(error)}")
            raise


Handler = Callable[[int, FrameType | None], Any]


def handle_interrupts(handler: Handler) -> None:
    """Set what Ctrl-C does, unless whoever started this process or thread decided it: a shell does for what runs in its background."""
    is_ours = signal.getsignal(signal.SIGINT) in (signal.default_int_handler, end_before_command)
    if is_ours and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


def end_before_command(number: int, frame: FrameType | None) -> NoReturn:
    """End while modules load and arguments are read, where libraries would turn KeyboardInterrupt into errors of their own."""
    del number, frame
    typer.echo("stopped before anything was done", err=True)
    sys.exit(EXIT_INTERRUPTED)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Turns (image URL, alt-text) pairs into a training set for image-text models, and trains the model.",
)

REPEATABLE = "; repeatable."
PoolOption = Annotated[str, typer.Option("--pool", metavar="DIR", help="The pool: a folder, or an fsspec URL.")]
AddressOption = Annotated[
    str,
    typer.Option("--address", metavar="ADDRESS", help="A Ray cluster (auto, ray://HOST:10001); empty: this machine."),
]
WorkersOption = Annotated[
    int, typer.Option("--num-workers", metavar="N", min=0, help="Shards worked on at a time; 0: one per CPU.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=f"Change one key of the recipe{REPEATABLE}")
]
RecipeOption = Annotated[str, typer.Option("--recipe", metavar="FILE|NAME", help="A recipe: a file, or a shipped one.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show logs, and tracebacks of errors.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=lambda v: _show_version(v))
    ] = False,
) -> None:
    """Nothing to do: the options are read by `_Commands`."""


def open_pool(pool: str) -> "Pool":
    """Return the pool at a folder or URL."""
    from curate.store import Pool

    return Pool(pool)


def make_executor(address: str, num_workers: int) -> "Executor":
    """Return an executor for this machine, or for the cluster at `address`; it starts with the first piece of work."""
    from curate.executor import Executor

    return Executor(address=address or None, num_workers=num_workers or None)


def make_progress() -> "Progress":
    """Return a bar or log lines, as stderr asks for."""
    from pipelines.progress import choose_progress

    return choose_progress()


def show(content: RenderableType) -> None:
    """Print text or a table to stdout."""
    if isinstance(content, str):
        typer.echo(content)
        return
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    console.print(content)


def show_json(content: object) -> None:
    """Print JSON to stdout."""
    typer.echo(json.dumps(content, indent=2))


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"winnow {version('winnow')}")
        raise typer.Exit


def _end(ctx: typer.Context, code: int, message: str) -> NoReturn:
    typer.echo(message, err=True)
    ctx.exit(code)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever stderr is at that moment, so that a caller may redirect it."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        """Ignore the stream that the base class was made with."""


def _configure_logging(is_verbose: bool) -> None:
    handler = _StderrHandler()
    shape = "%(asctime)s %(levelname)s %(name)s: %(message)s" if is_verbose else "%(message)s"
    handler.setFormatter(logging.Formatter(shape))
    logging.basicConfig(level=logging.INFO if is_verbose else logging.WARNING, handlers=[handler], force=True)
    # The lines that stand for a progress bar are shown always.
    logging.getLogger("pipelines.progress").setLevel(logging.INFO)
