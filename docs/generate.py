"""Writes the parts of docs/ that the code knows: schemas, operators, recipe keys, commands.

python -m docs.generate            # write them
python -m docs.generate --check    # fail, naming the stale pages
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import typer

from curate.operator import Operator, PoolOperator, discover
from pipelines.cli import app
from pipelines.fields import read_settings, settings_class
from pipelines.recipe import Recipe, shipped_recipes
from pipelines.recipe_header import read_header
from schemas.annotation import AnnotationHeader, annotation_schema
from schemas.dataset import SIDECAR_COLUMNS, DatasetIndex, ShardEntry
from schemas.sample import sample_schema
from schemas.selection import LEDGER_SCHEMA, SELECTED_SCHEMA
from train.config import MODELS, ModelConfig
from train.loss import discover_losses, loss_class, make_loss
from train.request import Column, Patches, Pooled, Rate, Request, Teacher, Text, Tokens, View

FOLDER = Path(__file__).parent
BLOCK = re.compile(r"(<!-- generated: ([a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# What each column of the fixed schemas means; a column that is missing here fails the generation.
MEANINGS = {
    "uid": "identity of the sample, 32 hex characters",
    "num_occurrences": "rows of the input with this URL and alt-text, merged into one",
    "caption": "the web text, `alt_text` in SQL; null where there is none",
    "url": "where the image came from",
    "key": "name of the sample's members in the tar",
    "status": "`success`, `failed_to_download`, `failed_to_resize`, or `forgotten` (see [forget](forget.md))",
    "error_message": "why it failed; null for a success",
    "width": "of the stored image, pixels",
    "height": "of the stored image, pixels",
    "original_width": "as downloaded, pixels",
    "original_height": "as downloaded, pixels",
    "exif": "JSON text, `{}` when the image has none",
    "sha256": "of the bytes as downloaded",
    "error": "why the row has nulls; null where the row went well",
    "kept": "whether it was selected",
    "first_failing_rule": "null where kept",
    "failing_rules": "every rule the row fails, in the order of the rules",
    "weight": "relative expected draws per epoch; in the ledger null where not kept",
    "shard": "shard of the pool",
    "row": "row in that shard",
    "image_suffix": "of the image's member: `jpg`",
    "image_offset": "first byte of the image in the tar",
    "image_bytes": "its length",
    "json_offset": "the same for the JSON member; null where there is none",
    "json_bytes": "",
    "txt_offset": "the same for the text member; null where there is none",
    "txt_bytes": "",
}


def schema_table(schema: Iterable[pa.Field]) -> str:
    """Return columns, types and meanings as a table."""
    rows = [(f"`{field.name}`", str(field.type), MEANINGS[field.name]) for field in schema]
    return table(("column", "type", "meaning"), rows)


def settings_table(cls: type) -> str:
    """Return the fields of a settings class as a table, their nested classes' below them."""
    settings = read_settings(cls)
    rows = [
        (f"`{s.name}`", s.kind_text, "required" if s.is_required else code(s.default_text), escape(s.help))
        for s in settings
    ]
    text = table(("key", "type", "default", "meaning"), rows)
    for setting in settings:
        inner = settings_class(setting.kind)
        if inner is not None and not issubclass(inner, Operator):
            text += f"\n`{setting.name}`:\n\n{settings_table(inner)}"
    return text


def recipe_keys() -> str:
    """Return every key of a recipe, section by section."""
    sections = [s for s in read_settings(Recipe) if settings_class(s.kind) is not None]
    top = [
        (
            f"`{s.name}`",
            s.kind_text if s not in sections else "section",
            escape(s.help or first_line(settings_class(s.kind))),
        )
        for s in read_settings(Recipe)
    ]
    parts = [
        table(
            ("key", "type", "meaning"),
            [("`extends`", "text", "a shipped recipe, or a path relative to the file"), *top],
        )
    ]
    for section in sections:
        cls = settings_class(section.kind)
        assert cls is not None
        parts.append(f"### {section.name}\n\n{first_line(cls)}\n\n{settings_table(cls)}")
    return "\n".join(parts)


def shipped() -> str:
    """Return the recipes that come with Winnow, as their headers have them."""
    rows = []
    for name, path in shipped_recipes().items():
        header = read_header(path)
        facts = [
            f"{title}: {text}."
            for title, text in (
                ("Needs", header.needs),
                ("Expected", header.expected),
                ("Differs", header.differs),
            )
            if text
        ]
        about = " ".join([header.summary, *facts])
        rows.append((f"`{name}`", escape(about), header.paper, escape(header.cost), escape(header.measured)))
    return table(("recipe", "what it does", "paper", "cost", "measured here"), rows)


def models() -> str:
    """Return the named models and the fields of a model's shape."""
    rows = [
        (
            f"`{name}`",
            m.image_tower,
            str(m.image_size),
            str(m.patch_size),
            str(m.text_width),
            str(m.context_length),
            str(m.embed_dim),
        )
        for name, m in MODELS.items()
    ]
    heads = ("model", "image tower", "image size", "patch", "text width", "context", "embedding")
    return f"{table(heads, rows)}\n`model_options` changes any of:\n\n{settings_table(ModelConfig)}"


def losses() -> str:
    """Return every loss with its options and what it reads beside the picture and the drawn text."""
    sections = []
    for name in discover_losses():
        cls = loss_class(name)
        module = sys.modules[cls.__module__]
        options = inspect.signature(cls).parameters.values()
        asked = [text for request in make_loss(name, {}).needs if (text := describe_request(request))]
        lines = [f"## {name}", "", f"{first_line(module)} {inspect.getdoc(cls)}", ""]
        lines += [f"Options: {', '.join(f'`{o.name}` ({plain(o.default)})' for o in options)}."] if options else []
        lines += [f"Reads {', '.join(dict.fromkeys(asked))}."] if asked else []
        sections.append("\n".join(lines) + "\n")
    return "\n".join(sections)


def plain(value: object) -> str:
    """Return a default as YAML spells it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return (
        {True: "true", False: "false", "": "none"}.get(value, str(value))
        if isinstance(value, bool | str)
        else f"{value:g}"
    )


def describe_request(request: Request) -> str:
    """Return what a loss asks for as people read it; nothing for the picture and the drawn text."""
    match request:
        case View(column=column) if column:
            return f"the picture of the sample in `{column}`"
        case View(number=number) if number:
            return "augmented views"
        case Text(columns=columns, count=count) if columns:
            return f"{f'up to {count} of ' if count > 1 else ''}the captions {', '.join(f'`{c}`' for c in columns)}"
        case Text(variant=variant) if variant:
            return f"{variant} texts"
        case Pooled(view) | Patches(view) | Teacher(View() as view) | Teacher(Pooled(view)):
            what = "output" if isinstance(request, Teacher) and isinstance(request.source, Pooled) else "features"
            kind = f"a teacher's {what}" if isinstance(request, Teacher) else type(request).__name__.lower()
            return f"{kind if kind != 'pooled' else 'the output'} of {'augmented views' if view.number else 'the image tower'}"
        case Tokens(text):
            return f"tokens of {text.variant + ' texts' if text.variant else 'the text tower'}"
        case Column(name=name, kind=kind):
            return f"the column `{name}` ({'numbers' if kind == 'number' else kind})"
        case Rate():
            return "how often each sample is drawn"
        case _:
            return ""


def operators() -> str:
    """Return a section for every operator."""
    return "\n".join(operator_section(name, cls) for name, cls in discover().items())


def operator_costs() -> str:
    """Return the newest table that `python -m benchmarks operators` wrote, with what it was measured on."""
    results = FOLDER.parent / "benchmarks" / "results"
    newest = max(results.glob("operators_*.md"), key=lambda path: path.stem.rpartition("_")[2])
    facts, _, report = newest.read_text(encoding="utf-8").partition("\n\n")[2].partition("\n\n")
    kept = [
        line.removeprefix("- ") for line in facts.splitlines() if line.startswith(("- date", "- hardware", "- load"))
    ]
    return f"Measured by `python -m benchmarks operators`; {'; '.join(kept)}.\n\n{report.strip()}\n"


def operator_section(name: str, cls: type[Operator]) -> str:
    """Return what an operator reads, writes and takes."""
    inherited = {s.name for s in read_settings(Operator)}
    parameters = [s for s in read_settings(cls) if s.name not in inherited]
    kind = "needs every row of the pool" if issubclass(cls, PoolOperator) else "row by row"
    lines = [f"## {name}", "", inspect.getdoc(cls) or "", ""]
    lines += [
        f"Version {cls.version}; {kind}; reads {', '.join(f'`{column}`' for column in cls.reads) or 'nothing'}.",
        "",
    ]
    lines += [table(("column", "type"), [(f"`{field.name}`", str(field.type)) for field in cls.writes])]
    if parameters:
        rows = [
            (f"`{s.name}`", s.kind_text, "required" if s.is_required else code(s.default_text), escape(s.help))
            for s in parameters
        ]
        lines += [table(("parameter", "type", "default", "meaning"), rows)]
    return "\n".join(lines)


def commands() -> str:
    """Return a section for every command, from typer's own description."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("winnow", [], resilient_parsing=True)
    sections = [command_section("winnow", group, context)]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = command.make_context(name, [], parent=context, resilient_parsing=True)
        sections.append(command_section(f"winnow {name}", command, inner))
        for child in command.list_commands(inner) if hasattr(command, "list_commands") else ():
            own = command.get_command(inner, child)
            own_context = own.make_context(child, [], parent=inner, resilient_parsing=True)
            sections.append(command_section(f"winnow {name} {child}", own, own_context))
    return "\n".join(sections)


def command_section(title: str, command: Any, context: Any) -> str:
    """Return usage, help, arguments and flags of one command."""
    records = [(param, param.get_help_record(context)) for param in command.get_params(context)]
    arguments = [
        (f"`{r[0].partition(' <')[0]}`", escape(r[1])) for p, r in records if r and p.param_type_name == "argument"
    ]
    flags = [(f"`{escape(r[0])}`", escape(r[1])) for p, r in records if r and p.param_type_name == "option"]
    usage = " ".join([title, *command.collect_usage_pieces(context)])
    parts = [f"## {title}\n\n```\n{usage}\n```\n\n{inspect.cleandoc(command.help or '')}\n"]
    parts += [table(("argument", "meaning"), arguments)] if arguments else []
    parts += [table(("flag", "meaning"), flags)] if flags else []
    return "\n".join(parts)


def index_fields() -> str:
    """Return the fields of `index.json` and of one of its shards."""
    return f"{settings_table(DatasetIndex)}\nEach shard:\n\n{settings_table(ShardEntry)}"


BLOCKS: dict[str, Callable[[], str]] = {
    "sample_schema": lambda: schema_table(sample_schema()),
    "annotation_schema": lambda: schema_table(annotation_schema(pa.schema([]))),
    "annotation_header": lambda: settings_table(AnnotationHeader),
    "ledger_schema": lambda: schema_table(LEDGER_SCHEMA),
    "selected_schema": lambda: schema_table(SELECTED_SCHEMA),
    "sidecar_schema": lambda: schema_table(pa.schema(list(SIDECAR_COLUMNS))),
    "index_fields": index_fields,
    "operators": operators,
    "operator_costs": operator_costs,
    "recipe_keys": recipe_keys,
    "shipped_recipes": shipped,
    "losses": losses,
    "models": models,
    "commands": commands,
}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(lines) + "\n"


def code(text: str) -> str:
    """Return text as code, or nothing."""
    return f"`{text}`" if text else ""


def escape(text: str) -> str:
    """Return text that does not break out of a table cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def first_line(cls: type | None) -> str:
    """Return the first line of a class's docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0] if cls else ""


def render(text: str) -> str:
    """Return a page with its generated blocks filled in."""
    return BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]]()}{match[3]}", text)


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with `--check` return 1 when one is stale."""
    stale = []
    for page in sorted(FOLDER.glob("*.md")):
        old = page.read_text(encoding="utf-8")
        new = render(old)
        if new == old:
            continue
        stale.append(page.name)
        if "--check" not in arguments:
            page.write_text(new, encoding="utf-8")
    if stale and "--check" in arguments:
        sys.stderr.write(f"stale: {', '.join(stale)}; run `make docs` and commit the result\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
