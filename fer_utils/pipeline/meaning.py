"""What code does, whatever it looks like: hashes of cells and modules that words and layout leave alone.

Code counts by its syntax tree without comments, docstrings and formatting. So a better sentence makes no result stale.
The tree is written out here and not with ast.dump or ast.unparse: both give other texts in other versions of Python.
"""

import ast
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from fer_utils.pipeline.notebooks import CodeCell

MAGIC = re.compile(r"^(\s*)([%!].*)$", re.MULTILINE)  # IPython's commands, one a line
# Load or store, u"", type comments: no meaning of their own.
IGNORED_FIELDS = ("ctx", "kind", "type_comment", "type_ignores")


def cell_hash(cell: CodeCell) -> str:
    """Hash of what a code cell does, with its tags."""
    return _hash(repr((cell_meaning(cell.source), cell.tags)))


def module_hashes(cells: Iterable[CodeCell], package: Path) -> dict[str, str]:
    """File -> hash of what it does, for every module of `package` that the cells import, directly or through others.

    With the `__init__` files on the way, which Python executes as well. Files are relative to the package's folder.
    """
    modules = package_modules(package)
    files = sorted(modules[name] for name in imported_modules(cells, package.name, modules))
    return {
        path.relative_to(package.parent).as_posix(): _hash(module_meaning(path.read_text(encoding="utf-8")))
        for path in files
    }


# --- What code does ---------------------------------------------------------------------------------------------------

_parse = functools.cache(ast.parse)


@functools.cache  # every stage asks for almost the same modules
def module_meaning(source: str) -> str:
    """What a module does, as text; the source itself when it cannot be parsed."""
    try:
        return _meaning(_parse(source))
    except SyntaxError:
        return source


def cell_meaning(source: str) -> str:
    """What a cell does, as text; its magics count as they are written, and the whole source if it cannot be parsed.

    A text alone on a line is shown if it is the last one, so here it counts, and so does a last semicolon, which hides.
    """
    try:
        tree, python = parse_cell(source)
    except SyntaxError:
        return source
    statements = [_meaning(statement) for statement in tree.body]
    return "\n".join([*statements, ";"] if _ends_with_semicolon(tree, python) else statements)


def parse_cell(source: str) -> tuple[ast.Module, str]:
    """The syntax tree of a cell and the Python it was made from, with calls in place of magics; SyntaxError if none."""
    try:
        return ast.parse(source), source
    except SyntaxError:
        if source.lstrip().startswith("%%"):  # a cell magic: what follows need not be Python
            raise
        python = MAGIC.sub(lambda line: f"{line[1]}__magic__({line[2]!r})", source)
        return ast.parse(python), python


def _meaning(value: object) -> str:
    """A syntax tree as text. What is empty is left out, because which empty fields there are depends on the version."""
    if isinstance(value, ast.JoinedStr):  # an f-string, whose pieces of text are cut differently by different versions
        value = ast.JoinedStr(values=_merge_texts(value.values))
    if isinstance(value, ast.AST):
        fields = ((name, field) for name, field in ast.iter_fields(value) if name not in IGNORED_FIELDS)
        texts = [f"{name}={_meaning(field)}" for name, field in fields if field is not None and field != []]
        if isinstance(value, ast.Constant):
            texts = [repr(value.value)]
        return f"{type(value).__name__}({', '.join(texts)})"
    if isinstance(value, list):
        return f"[{', '.join(_meaning(item) for item in value if not _does_nothing(item))}]"
    return repr(value)


def _does_nothing(node: object) -> bool:
    """Whether a statement is only a text, such as a docstring, or `pass`."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return isinstance(node.value.value, str)
    return isinstance(node, ast.Pass)


def _merge_texts(pieces: Iterable[ast.expr]) -> list[ast.expr]:
    """The pieces of an f-string with neighboring texts as one."""
    merged: list[ast.expr] = []
    for piece in pieces:
        if isinstance(piece, ast.Constant) and merged and isinstance(merged[-1], ast.Constant):
            merged[-1] = ast.Constant(merged[-1].value + piece.value)
        elif not (isinstance(piece, ast.Constant) and piece.value == ""):
            merged.append(piece)
    return merged


def _ends_with_semicolon(tree: ast.Module, source: str) -> bool:
    if not tree.body:
        return False
    last = tree.body[-1]
    line = source.splitlines()[last.end_lineno - 1].encode()  # columns are counted in bytes
    return line[last.end_col_offset :].decode().lstrip().startswith(";")


# --- What it imports --------------------------------------------------------------------------------------------------


def package_modules(package: Path) -> dict[str, Path]:
    """Dotted name -> file of every module in a package and in its sub-packages, each under the name of its folder."""
    modules = {}
    for path in package.rglob("*.py"):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imported_modules(cells: Iterable[CodeCell], package: str, modules: dict[str, Path]) -> set[str]:
    """Names of the package's modules that the cells import; all of them when a cell cannot be parsed."""
    waiting: set[str] = set()
    for cell in cells:
        try:
            waiting |= _imports_in(parse_cell(cell.source)[0], package, modules)
        except SyntaxError:
            waiting |= set(modules)
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= _imports_of_module(name, modules) - found
    return found


def _imports_of_module(name: str, modules: dict[str, Path]) -> set[str]:
    """The package's modules that a module imports; all of them when it cannot be parsed."""
    is_package = modules[name].name == "__init__.py"
    try:
        tree = _parse(modules[name].read_text(encoding="utf-8"))
    except SyntaxError:
        return set(modules)
    return _imports_in(tree, name if is_package else name.rpartition(".")[0], modules)


def _imports_in(tree: ast.AST, inside: str, modules: dict[str, Path]) -> set[str]:
    """The package's modules that a syntax tree imports, with the packages around them.

    inside: the package from which relative imports count.
    """
    parts = [name.split(".") for name in _names_in(tree, inside)]
    return {prefix for part in parts for n in range(1, len(part) + 1) if (prefix := ".".join(part[:n])) in modules}


@functools.cache
def _names_in(tree: ast.AST, inside: str) -> set[str]:
    return {name for node in ast.walk(tree) for name in _imported_names(node, inside)}


def _imported_names(node: ast.AST, inside: str) -> Iterator[str]:
    """Dotted names that an import statement may load: `from a import b` gives a and a.b."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        outer = inside.split(".")
        base = outer[: len(outer) + 1 - node.level] if node.level else []  # one dot: the package itself
        start = ".".join([*base, *filter(None, [node.module])])
        yield start
        yield from (f"{start}.{alias.name}" for alias in node.names)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
