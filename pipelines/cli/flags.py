"""Flags from settings classes, and selections from flags."""

import functools
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.app import open_pool
from pipelines.fields import Setting, read_settings
from schemas.errors import InputError

if TYPE_CHECKING:
    from curate.selection import Mix, Selection


def with_settings(
    cls: type, fill: Callable[[Mapping[str, object]], dict[str, object]] = lambda _: {}
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for every field of a settings class; the command receives them as its argument `config`.

    `fill` takes the command's other values and returns settings that hold where no flag was given.
    """
    settings = {setting.name: setting for setting in read_settings(cls)}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: object) -> None:
            given = {name: _read_flag(settings[name], values[name]) for name in settings if values[name] is not None}
            own_values = {name: value for name, value in values.items() if name not in settings}
            command(**own_values, config=cls(**{**fill(own_values), **given}))

        own = [p for p in inspect.signature(command).parameters.values() if p.name != "config"]
        flags = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_flag(setting))
            for name, setting in settings.items()
        ]
        run.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (*own, *flags)}
        return run

    return decorate


def stored_settings(values: Mapping[str, object]) -> dict[str, object]:
    """Return the settings the pool's shards were stored with: a retry must go on with them, and nobody should have to repeat them."""
    from curate.fetch.ingest import SETTINGS_FILE

    pool = open_pool(str(values["pool"]))
    if not pool.exists(SETTINGS_FILE):
        return {}
    stored = json.loads(pool.read_bytes(SETTINGS_FILE))
    # JSON has no infinity: null is a default of its own.
    return {name: value for name, value in stored.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class SelectionFlags:
    """What `winnow select` was told by flags; empty where it was not."""

    rules: Sequence[str] = ()
    weight: str = ""
    captions: Sequence[str] = ()
    top: str = ""
    per_group: str = ""
    mix: str = ""
    mix_cut: bool = False
    limit: str = ""
    seed: int = 0


def choose_selection(name: str, flags: SelectionFlags, recipe: str, overrides: Sequence[str]) -> "Selection":
    """Return the selection of a recipe, or else the one that the flags describe; both at once are refused."""
    if recipe:
        from pipelines.recipe import load_section

        given = [field.name for field in fields(flags) if getattr(flags, field.name)]
        if given:
            flag = f"--{given[0].rstrip('s').replace('_', '-')}"
            raise InputError(f"{flag} and --recipe were both given; change a recipe with --set, or leave it out")
        found = load_section("select", recipe, [*overrides, *([f"name={name}"] if name else [])])
        return typing.cast("Selection", found)
    if overrides:
        raise InputError("--set changes a recipe; give one with --recipe, or use --rule and the other flags")
    return _read_selection(name, flags)


def read_rules(texts: Sequence[str]) -> dict[str, str]:
    """Return the SQL of each `REASON=SQL`, by its reason."""
    found: dict[str, str] = {}
    for text in texts:
        reason, equals, predicate = (part.strip() for part in text.partition("="))
        if not equals or not reason or reason in found:
            problem = "is there twice" if reason in found else "is not REASON=SQL"
            raise InputError(f"--rule {text!r} {problem}; write --rule 'wide enough=image_width >= 200'")
        found[reason] = predicate
    return found


def read_seeds(text: str) -> tuple[int, ...]:
    """Return the numbers of `0,1,2`."""
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError as error:
        raise InputError(f"--seeds {text!r} is not N,N,...") from error


def _read_selection(name: str, flags: SelectionFlags) -> "Selection":
    from curate.selection import Limit, PerGroup, Selection, Top

    if not name:
        raise InputError("a selection needs a name; give --name NAME")
    mixture = dict(_split_number("--caption", text) for text in flags.captions or ["alt_text=1"])
    top_by, share = _split_number("--top", flags.top) if flags.top else ("", 0.0)
    group, group_size = _split_number("--per-group", flags.per_group) if flags.per_group else ("", 0.0)
    limit = flags.limit if "=" in flags.limit else f"={flags.limit}"
    limit_by, most = _split_number("--limit", limit) if flags.limit else ("", 0.0)
    return Selection(
        name=name,
        rules=read_rules(flags.rules),
        weight=flags.weight or "1.0",
        captions=mixture,
        top=Top(by=top_by, fraction=share) if flags.top else None,
        per_group=PerGroup(by=group, num_samples=int(group_size)) if flags.per_group else None,
        mix=_read_mix(flags),
        limit=Limit(by=limit_by or None, num_samples=int(most)) if flags.limit else None,
        seed=flags.seed,
    )


def _read_mix(flags: SelectionFlags) -> "Mix | None":
    from curate.selection import Mix

    if not flags.mix:
        if flags.mix_cut:
            raise InputError("--mix-cut says how --mix is reached; give --mix as well")
        return None
    by, _, listed = flags.mix.rpartition("=")
    shares: dict[str, float] = {}
    for entry in listed.split(","):
        source, _, share = (part.strip() for part in entry.rpartition(":"))
        if not by.strip() or not source or source in shares or not _is_number(share):
            raise InputError(
                f"--mix {flags.mix!r} is wrong at {entry!r}; write --mix source=cc12m:0.7,laion:0.3, each source once"
            )
        shares[source] = float(share)
    return Mix(by=by.strip(), shares=shares, how="cut" if flags.mix_cut else "weights")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _split_number(flag: str, text: str) -> tuple[str, float]:
    """Return the two sides of the last `=`, the right one as a number; SQL on the left may hold more of them."""
    left, _, right = text.rpartition("=")
    try:
        return left.strip(), float(right)
    except ValueError as error:
        raise InputError(f"{flag} {text!r} does not end with =NUMBER") from error


def _flag(setting: Setting) -> object:
    """Return the annotation that makes a flag of a setting: the default stays with the settings class."""
    name = f"--{setting.name.replace('_', '-')}"
    kind = _flag_type(setting)
    default = ",".join(setting.default) if isinstance(setting.default, tuple) else setting.default_text
    text = setting.help + (f" [default: {default}]" if setting.default is not None and default else "")
    if kind is bool:
        return Annotated[bool | None, typer.Option(f"{name}/--no-{name[2:]}", help=text, show_default=False)]
    metavar = {int: "N", float: "X", tuple: "A,B,..."}.get(kind, "TEXT")
    shown: type = str if kind is tuple else kind
    return Annotated[shown | None, typer.Option(name, metavar=metavar, help=text, show_default=False)]


def _flag_type(setting: Setting) -> type:
    """Return bool, int, float, str or tuple: what the text of a flag is read as."""
    kinds = [kind for kind in (setting.kind, *typing.get_args(setting.kind)) if kind is not types.NoneType]
    for kind in (tuple, bool, int, float):
        if kind in kinds or typing.get_origin(kinds[0]) is kind:
            return kind
    return str


def _read_flag(setting: Setting, value: object) -> object:
    if _flag_type(setting) is tuple:
        return tuple(part.strip() for part in str(value).split(",") if part.strip())
    return value
