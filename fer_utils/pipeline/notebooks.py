"""Reading notebooks without running them: their code cells, their parameters, and values given for these by hand."""

import ast
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Given to every notebook by the runner, so never by hand with -p.
RUNNER_PARAMETERS = ("data", "rafdb", "profile", "device", "out", "inputs")


class UsageError(ValueError):
    """Something is wrong before any work has started; the message is one plain sentence."""


@dataclass(frozen=True)
class CodeCell:
    """What decides the result of a code cell: its source and its tags (a tag can skip it)."""

    source: str
    tags: tuple[str, ...]


def read_code_cells(notebook: Path) -> list[CodeCell]:
    """The code cells of a notebook file that are not empty; UsageError when it is missing or not a notebook."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except FileNotFoundError:
        raise UsageError(f"the notebook {notebook} is missing; restore it, for example with git checkout") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{notebook} is not a notebook that can be read; restore it with git checkout") from None
    codes = [
        CodeCell(source="".join(cell["source"]), tags=tuple(sorted(cell.get("metadata", {}).get("tags", ()))))
        for cell in cells
        if cell["cell_type"] == "code"
    ]
    return [code for code in codes if code.source.strip()]


def declared_parameters(cells: Iterable[CodeCell]) -> dict[str, object]:
    """Name -> default of every literal that the cell tagged `parameters` assigns; UsageError for anything else."""
    source = next((cell.source for cell in cells if "parameters" in cell.tags), "")
    try:
        return {
            target.id: ast.literal_eval(statement.value)
            for statement in ast.parse(source).body
            for target in statement.targets
        }
    except (ValueError, SyntaxError, AttributeError):
        raise UsageError("a cell tagged `parameters` may hold assignments of literals only, like epochs = 30") from None


def assign_overrides(
    assignments: Iterable[str], declared: Mapping[str, Mapping[str, object]]
) -> dict[str, dict[str, object]]:
    """Spread "NAME=VALUE" texts over the notebooks that declare NAME, typed like the default there.

    declared: notebook name -> its declared parameters. Returns notebook name -> the values given for it by hand.
    UsageError for a name that no notebook declares (with the nearest one) or a value of the wrong type.
    """
    overrides: dict[str, dict[str, object]] = {notebook: {} for notebook in declared}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"-p {assignment}: write it as NAME=VALUE, for example -p epochs=5")
        if name in RUNNER_PARAMETERS:
            raise UsageError(f"-p {name}: this parameter is set by the options --data, --rafdb, --profile and --device")
        check_known(name, {known for defaults in declared.values() for known in defaults})
        for notebook, defaults in declared.items():
            if name in defaults:
                overrides[notebook][name] = check_value(name, typed(name, text, defaults[name]))
    return overrides


def check_known(name: str, known: Iterable[str]) -> None:
    """UsageError, with the nearest known name, when no notebook of the run declares the parameter `name`."""
    known = sorted(set(known) - set(RUNNER_PARAMETERS))
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known) or 'none'}"
        raise UsageError(f"no notebook of this run has a parameter {name}; {hint}")


def typed(name: str, text: str, default: object) -> object:
    """The text as a value of the default's type: bool, int, float, str, or another literal such as a list."""
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        value = text
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if isinstance(default, list) and isinstance(value, tuple):
        value = list(value)  # seeds=0,1,2 needs no quotes in a shell
    fits = default is None or type(value) is type(default)
    if not fits or (isinstance(default, list) and not _same_items(value, default)):
        kinds = {int: "a whole number", float: "a number", bool: "True or False"}
        raise UsageError(f"-p {name}={text}: {name} must be {kinds.get(type(default), 'a value')} like {default!r}")
    return value


def check_value(name: str, value: object) -> object:
    """The value itself; UsageError where a well-known parameter is out of range."""
    if name in ("epochs", "batch_size") and value < 1:
        raise UsageError(f"{name} must be 1 or more, not {value}")
    if name == "lr" and not (value > 0 and math.isfinite(value)):
        raise UsageError(f"lr must be a number above 0, not {value}")
    if name == "seeds" and not value:
        raise UsageError("seeds must name at least one seed, like [0]")
    return value


def _same_items(value: list, default: list) -> bool:
    return not default or all(type(item) is type(default[0]) for item in value)
