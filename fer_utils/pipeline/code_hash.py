"""Hashes of notebook cells and modules that change only when the code does something else.

The hash is taken of the syntax tree without comments, docstrings and formatting, so a better comment makes no result
stale. This module writes the tree as text itself, because the output of ast.dump and ast.unparse differs between
versions of Python.
"""

import ast
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from fer_utils.pipeline.notebooks import CodeCell

MAGIC = re.compile(r"^(\s*)([%!].*)$", re.MULTILINE)  # an IPython command such as %matplotlib or !ls
# Fields of the syntax tree that do not change what code does: load or store, u"", type comments.
IGNORED_FIELDS = ("ctx", "kind", "type_comment", "type_ignores")


def hash_cell(cell: CodeCell) -> str:
    """Return the hash of a code cell and its tags."""
    return _hash(repr((normalize_cell(cell.source), cell.tags)))


def hash_modules(cells: Iterable[CodeCell], package: Path) -> dict[str, str]:
    """Return file -> hash for every module of `package` that the cells import, directly or through other modules.

    The `__init__` files of the packages around them count too, because Python executes them. Files are relative to the
    folder that holds the package.
    """
    modules = find_modules(package)
    files = sorted(modules[name] for name in find_imports(cells, package.name, modules))
    return {
        path.relative_to(package.parent).as_posix(): _hash(normalize_module(path.read_text(encoding="utf-8")))
        for path in files
    }


# --- Code as normalized text ------------------------------------------------------------------------------------------

_parse = functools.cache(ast.parse)


@functools.cache  # every stage imports almost the same modules
def normalize_module(source: str) -> str:
    """Return a module's syntax tree as text, or the source itself when it cannot be parsed."""
    try:
        return _write_tree(_parse(source))
    except SyntaxError:
        return source


def normalize_cell(source: str) -> str:
    """Return a cell's syntax tree as text, or the source itself when it cannot be parsed. Magics count as written.

    Unlike in a module, a string on a line of its own counts, because Jupyter displays the cell's last value. So does a
    semicolon at the end, which hides that value.
    """
    try:
        tree, python = parse_cell(source)
    except SyntaxError:
        return source
    statements = [_write_tree(statement) for statement in tree.body]
    return "\n".join([*statements, ";"] if _ends_with_semicolon(tree, python) else statements)


def parse_cell(source: str) -> tuple[ast.Module, str]:
    """Return a cell's syntax tree and the Python it comes from, in which calls replace magics.

    SyntaxError when the cell is not Python.
    """
    try:
        return ast.parse(source), source
    except SyntaxError:
        if source.lstrip().startswith("%%"):  # a cell magic; the lines after it need not be Python
            raise
        python = MAGIC.sub(lambda line: f"{line[1]}__magic__({line[2]!r})", source)
        return ast.parse(python), python


def _write_tree(value: object) -> str:
    """Return a syntax tree as text, without empty fields, because these differ between versions of Python."""
    if isinstance(value, ast.JoinedStr):  # an f-string, which versions of Python split into different pieces
        value = ast.JoinedStr(values=_join_strings(value.values))
    if isinstance(value, ast.AST):
        fields = ((name, field) for name, field in ast.iter_fields(value) if name not in IGNORED_FIELDS)
        texts = [f"{name}={_write_tree(field)}" for name, field in fields if field is not None and field != []]
        if isinstance(value, ast.Constant):
            texts = [repr(value.value)]
        return f"{type(value).__name__}({', '.join(texts)})"
    if isinstance(value, list):
        return f"[{', '.join(_write_tree(item) for item in value if not _does_nothing(item))}]"
    return repr(value)


def _does_nothing(node: object) -> bool:
    """Whether a statement is only a string, such as a docstring, or `pass`."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return isinstance(node.value.value, str)
    return isinstance(node, ast.Pass)


def _join_strings(pieces: Iterable[ast.expr]) -> list[ast.expr]:
    """Join neighboring strings among the pieces of an f-string."""
    joined: list[ast.expr] = []
    for piece in pieces:
        if isinstance(piece, ast.Constant) and joined and isinstance(joined[-1], ast.Constant):
            joined[-1] = ast.Constant(joined[-1].value + piece.value)
        elif not (isinstance(piece, ast.Constant) and piece.value == ""):
            joined.append(piece)
    return joined


def _ends_with_semicolon(tree: ast.Module, source: str) -> bool:
    if not tree.body:
        return False
    last = tree.body[-1]
    line = source.splitlines()[last.end_lineno - 1].encode()  # end_col_offset counts bytes
    return line[last.end_col_offset :].decode().lstrip().startswith(";")


# --- Imports ----------------------------------------------------------------------------------------------------------


def find_modules(package: Path) -> dict[str, Path]:
    """Return dotted name -> file of every module of a package and its subpackages."""
    modules = {}
    for path in package.rglob("*.py"):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def find_imports(cells: Iterable[CodeCell], package: str, modules: dict[str, Path]) -> set[str]:
    """Return the names of the package's modules that the cells import, directly or through other modules.

    When a cell cannot be parsed, it may import anything, so all modules count.
    """
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
    """Return the package's modules that one module imports; all of them when it cannot be parsed."""
    is_package = modules[name].name == "__init__.py"
    try:
        tree = _parse(modules[name].read_text(encoding="utf-8"))
    except SyntaxError:
        return set(modules)
    return _imports_in(tree, name if is_package else name.rpartition(".")[0], modules)


def _imports_in(tree: ast.AST, inside: str, modules: dict[str, Path]) -> set[str]:
    """Return the package's modules that a syntax tree imports, and the packages around them.

    inside: the package that relative imports start from.
    """
    parts = [name.split(".") for name in _names_in(tree, inside)]
    return {prefix for part in parts for n in range(1, len(part) + 1) if (prefix := ".".join(part[:n])) in modules}


@functools.cache
def _names_in(tree: ast.AST, inside: str) -> set[str]:
    return {name for node in ast.walk(tree) for name in _imported_names(node, inside)}


def _imported_names(node: ast.AST, inside: str) -> Iterator[str]:
    """Yield the dotted names that an import statement may load: `from a import b` gives a and a.b."""
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
