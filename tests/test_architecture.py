"""The conventions of the project, as tests: layering, sizes, one door per library, names, documents, the command line."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate.operator import discover

ROOT = Path(__file__).parents[1]
PACKAGES = ("schemas", "curate", "train", "pipelines")
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 50
# The training loop reads top to bottom, in titled sections.
LONG_FUNCTIONS = {"train/trainer.py": 150}

# Who may import what. A module named here may be imported only by these files (or files below these folders), or for type checking.
DOORS = {
    "ray": ("curate/executor.py", "curate/executor_llm.py", "train/launch.py"),
    "duckdb": ("curate/catalog.py",),
    "simplejpeg": ("curate/images.py", "train/decoder.py"),
    "PIL": ("curate/images.py", "train/decoder.py", "pipelines/sheet.py", "pipelines/sweep_plot.py", "pipelines/demo/"),
    "faiss": ("curate/kmeans.py", "train/neighbours.py"),
    "HanTa": ("curate/parsing/tagger.py",),
    "spacy": ("curate/parsing/spacy_parser.py",),
    "rapidocr": ("curate/models/ocr.py",),
    "onnxruntime": ("curate/models/ocr.py",),
    "typer": ("pipelines/cli/",),
    "img2dataset": ("curate/fetch/",),
    "httptools": ("curate/fetch/response.py",),
    "httpx": ("curate/models/engine_openai.py",),
    "starlette": ("pipelines/browse/server.py",),
    "uvicorn": ("pipelines/browse/launch.py",),
    "sqlite3": ("curate/models/answer_cache.py", "pipelines/export/energon.py"),
}
# OpenCV computes in more places than it decodes in.
DECODERS = {"imdecode", "imdecodemulti", "imread", "imreadmulti"}
DECODING_FILES = {"curate/images.py", "curate/jpeg.py", "train/decoder.py"}
# Environment variables are read by the command line; elsewhere only where another program speaks through them, and
# for a server's key, which must not travel in arguments, files or logs.
ENVIRONMENT_READERS = {"pipelines/cli/app.py", "train/distributed.py", "curate/models/engine_openai.py"}
ENVIRONMENT_WRITES = {"setdefault", "update", "pop"}
FORBIDDEN_NAMES = {"util", "utils", "helper", "helpers", "common", "misc", "manager", "managers", "legacy"}


def module_paths(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


PACKAGE_FILES = module_paths(*PACKAGES)
TREES = {relative(path): ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE_FILES}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the top-level name of everything a file imports at run time, at any depth."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        else:
            yield from imports(node)


def test_the_tree_was_found() -> None:
    assert len(PACKAGE_FILES) > 20
    assert "curate/store.py" in TREES


def test_files_are_at_most_500_lines() -> None:
    lengths = {
        relative(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in (*PACKAGE_FILES, *module_paths("tests", "benchmarks", "docs"))
    }
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_functions_are_under_50_lines() -> None:
    def num_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
        # The docstring is not counted: explaining is free.
        first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
        return (node.end_lineno or 0) - first.lineno + 1 + (node.body[0].lineno - node.lineno)

    too_long = {
        f"{name}:{node.lineno} {node.name}": num_lines(node)
        for name, tree in TREES.items()
        for node in functions(tree)
        if num_lines(node) > LONG_FUNCTIONS.get(name, MAX_FUNCTION_LINES)
    }
    assert too_long == {}


def test_each_library_has_one_door() -> None:
    strays = [
        f"{name} imports {module}"
        for name, tree in TREES.items()
        for module in imports(tree)
        if module in DOORS and not name.startswith(DOORS[module])
    ]
    assert strays == []


def test_images_are_decoded_in_one_place() -> None:
    strays = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in DECODERS
    }
    assert strays <= DECODING_FILES


def test_the_environment_is_read_in_one_place() -> None:
    def reads(tree: ast.AST) -> Iterator[ast.AST]:
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in {"getenv", "getenvb"}:
                yield node
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "environb"}:
                parent = parents[node]
                is_write = (isinstance(parent, ast.Subscript) and not isinstance(parent.ctx, ast.Load)) or (
                    isinstance(parent, ast.Attribute) and parent.attr in ENVIRONMENT_WRITES
                )
                if not is_write:
                    yield node

    assert {name for name, tree in TREES.items() if any(reads(tree))} <= ENVIRONMENT_READERS
    assert any(reads(ast.parse("import os\nos.environ['HOME']")))
    assert not any(reads(ast.parse("import os\nos.environ['HOME'] = ''")))


def test_packages_import_only_downwards() -> None:
    result = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_file_has_a_name_that_says_nothing() -> None:
    names = {relative(path) for path in PACKAGE_FILES if FORBIDDEN_NAMES.intersection((path.stem, *path.parent.parts))}
    assert names == set()


def test_nothing_prints() -> None:
    """The command line says what it has to say through typer."""
    printers = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printers == set()


def test_public_objects_have_docstrings() -> None:
    def undocumented(tree: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
        for node in tree.body:
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                yield f"{prefix}{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node, f"{prefix}{node.name}.")

    missing = [f"{name}: no module docstring" for name, tree in TREES.items() if not ast.get_docstring(tree)]
    missing += [f"{name}: {found}" for name, tree in TREES.items() for found in undocumented(tree, "")]
    # What an operator's methods do is said once, in `curate/operator.py`.
    repeated = re.compile(r"curate/operators/.*\.(load|annotate|prepare|requires|identity)$")
    assert [entry for entry in missing if not repeated.match(entry)] == []


def test_every_operator_has_a_test_file() -> None:
    untested = [name for name in discover() if not (ROOT / f"tests/curate/operators/test_{name}.py").exists()]
    assert untested == []


def test_every_module_is_tested() -> None:
    """A module has a test file of its name, or is a part of one in its folder that has: imported there, or from a test."""

    def imported(tree: ast.AST) -> set[str]:
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        return found

    modules = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name
        for name, tree in TREES.items()
        if tree.body[1:] and not name.endswith("__main__.py")
    }
    from_tests = set().union(*(imported(ast.parse(path.read_text(encoding="utf-8"))) for path in module_paths("tests")))
    tested = {
        m
        for m in modules
        if m in from_tests or (ROOT / "tests" / Path(modules[m]).parent / f"test_{m.rpartition('.')[2]}.py").exists()
    }
    before: set[str] = set()
    while tested != before:
        before = set(tested)
        for module in before:
            siblings = {m for m in modules if m.rpartition(".")[0] in {module, module.rpartition(".")[0]}}
            tested |= siblings & imported(TREES[modules[module]])
    assert sorted(set(modules) - tested) == []


def test_changelog_names_the_version_of_the_package() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    heading = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert heading is not None
    assert heading.group(1) == version.group(1)


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_in_documents_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    assert [target for target in targets if target and not (ROOT / target).exists()] == []
