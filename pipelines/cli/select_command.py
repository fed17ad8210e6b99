"""The command that makes a selection: the flags of `winnow select` that say it, or the changes that make it out of a recipe's."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

from pipelines.cli.flags import SelectionFlags, choose_selection
from pipelines.recipe import load_section
from pipelines.yaml_file import Tree, set_value
from schemas.errors import InputError

if TYPE_CHECKING:
    from curate.selection import Selection

# The recipe that has no rules: what flags cannot say is set on it.
_PLAIN_RECIPE = "raw"
_WHOLE = ("top", "per_group", "mix", "limit", "weight", "captions", "seed")


def select_command(pool: str, selection: "Selection", *, recipe: str = "", overrides: Sequence[str] = ()) -> str:
    """Return the shell command that makes a selection in the pool at `pool`, out of a recipe where one is given."""
    start = ["winnow", "select", "--pool", pool, "--name", selection.name]
    flags = None if recipe else _as_flags(selection)
    if flags is not None:
        return shlex.join([*start, *_list_flags(flags)])
    source = recipe or _PLAIN_RECIPE
    base = cast("Selection", load_section("select", source, list(overrides)))
    changes = [*overrides, *_changes(base, selection)]
    return shlex.join([*start, "--recipe", source, *(part for change in changes for part in ("--set", change))])


def _as_flags(selection: "Selection") -> SelectionFlags | None:
    """Return the flags that say a selection, or None where flags cannot say it."""
    top, cap, mix, limit = selection.top, selection.per_group, selection.mix, selection.limit
    shares = ",".join(f"{source}:{share!r}" for source, share in mix.shares.items()) if mix else ""
    captions = [f"{name}={share!r}" for name, share in selection.captions.items()]
    flags = SelectionFlags(
        rules=[f"{reason}={sql}" for reason, sql in selection.rules.items()],
        weight="" if selection.weight == "1.0" else selection.weight,
        captions=() if dict(selection.captions) == {"alt_text": 1.0} else captions,
        top=f"{top.by}={top.fraction!r}" if top else "",
        per_group=f"{cap.by}={cap.num_samples}" if cap else "",
        mix=f"{mix.by}={shares}" if mix else "",
        mix_cut=bool(mix and mix.how == "cut"),
        limit=f"{limit.by or ''}={limit.num_samples}" if limit else "",
        seed=selection.seed,
    )
    try:
        found = choose_selection(selection.name, flags, "", ())
    except InputError:
        return None
    return flags if found == selection and list(found.rules) == list(selection.rules) else None


def _list_flags(flags: SelectionFlags) -> list[str]:
    listed = [part for rule in flags.rules for part in ("--rule", rule)]
    listed += [part for caption in flags.captions for part in ("--caption", caption)]
    for name in ("weight", "top", "per_group", "mix", "limit"):
        value = getattr(flags, name)
        listed += [f"--{name.replace('_', '-')}", value.removeprefix("=")] if value else []
    return [*listed, *(["--mix-cut"] if flags.mix_cut else []), *(["--seed", str(flags.seed)] if flags.seed else [])]


def _changes(base: "Selection", selection: "Selection") -> list[str]:
    """Return what is to be set on a recipe's selection to make another of it."""
    changes = []
    rules, wanted = dict(base.rules), dict(selection.rules)
    changed = {name: sql for name, sql in wanted.items() if rules.get(name) != sql}
    # A dot or an equals sign in a name would be read as something else.
    if list({**rules, **changed}) == list(wanted) and not any(set(".=") & set(name) for name in changed):
        changes += [f"rules.{name}={_yaml(sql)}" for name, sql in changed.items()]
    else:
        changes.append(f"rules={json.dumps(wanted, ensure_ascii=False)}")
    old, new = asdict(base), asdict(selection)
    return changes + [f"{name}={_yaml(new[name])}" for name in _WHOLE if old[name] != new[name]]


def _yaml(value: object) -> str:
    """Return a value as `--set` reads it back; text stays bare where it may."""
    if isinstance(value, str) and value == value.strip():
        try:
            if set_value(Tree({}, {}), f"x={value}").value["x"] == value:
                return value
        except InputError:
            pass
    return json.dumps(value, ensure_ascii=False)
