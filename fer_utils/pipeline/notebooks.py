"""Read notebooks without running them: their code cells, their parameters, and the values set with -p."""

import ast
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# The runner sets these in every notebook, so -p cannot.
RUNNER_PARAMETERS = ("data", "rafdb", "profile", "device", "out", "inputs")


class UsageError(ValueError):
    """The run cannot start; the message is one plain sentence that says why and what to do."""


@dataclass(frozen=True)
class CodeCell:
    """The parts of a code cell that decide its result."""

    source: str
    tags: tuple[str, ...]  # a tag such as skip-execution can change whether the cell runs


def read_code_cells(notebook: Path) -> list[CodeCell]:
    """Return the code cells of a notebook file, without empty ones.

    UsageError when the file is missing or is not a notebook.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except FileNotFoundError:
        raise UsageError(f"the notebook {notebook} is missing; restore it, for example with git checkout") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{notebook} is not a valid notebook; restore it, for example with git checkout") from None
    code_cells = [
        CodeCell(source="".join(cell["source"]), tags=tuple(sorted(cell.get("metadata", {}).get("tags", ()))))
        for cell in cells
        if cell["cell_type"] == "code"
    ]
    return [cell for cell in code_cells if cell.source.strip()]


def read_parameters(cells: Iterable[CodeCell]) -> dict[str, object]:
    """Return name -> default value of everything that the cell tagged `parameters` assigns.

    UsageError when that cell holds anything but assignments of literals.
    """
    source = next((cell.source for cell in cells if "parameters" in cell.tags), "")
    try:
        return {
            target.id: ast.literal_eval(statement.value)
            for statement in ast.parse(source).body
            for target in statement.targets
        }
    except (ValueError, SyntaxError, AttributeError):
        raise UsageError("a cell tagged `parameters` may only assign literals, for example epochs = 30") from None


def assign_overrides(
    assignments: Iterable[str], defaults: Mapping[str, Mapping[str, object]]
) -> dict[str, dict[str, object]]:
    """Give each "NAME=VALUE" to all notebooks that declare NAME, with the type of the default there.

    defaults: notebook name -> its parameters and their default values. Returns notebook name -> its new values.
    UsageError when no notebook declares NAME, or when VALUE has the wrong type.
    """
    overrides: dict[str, dict[str, object]] = {notebook: {} for notebook in defaults}
    all_names = {name for parameters in defaults.values() for name in parameters}
    for assignment in assignments:
        name, value_text = split_assignment(assignment)
        check_name(name, all_names)
        for notebook, parameters in defaults.items():
            if name in parameters:
                value = parse_value(name, value_text, parameters[name])
                overrides[notebook][name] = check_value(name, value)
    return overrides


def split_assignment(assignment: str) -> tuple[str, str]:
    """Split "NAME=VALUE"; UsageError when there is no "=", or when only the runner sets this parameter."""
    name, equals, value_text = assignment.partition("=")
    if not equals:
        raise UsageError(f"-p {assignment}: write it as NAME=VALUE, for example -p epochs=5")
    if name in RUNNER_PARAMETERS:
        raise UsageError(f"-p {name}: use the options --data, --rafdb, --profile and --device to set this parameter")
    return name, value_text


def check_name(name: str, all_names: Iterable[str]) -> None:
    """UsageError when no notebook of the run has the parameter `name`; the message suggests the closest name."""
    all_names = sorted(set(all_names) - set(RUNNER_PARAMETERS))
    if name not in all_names:
        closest = difflib.get_close_matches(name, all_names, n=1)
        hint = f"did you mean {closest[0]}?" if closest else f"they have {', '.join(all_names) or 'none'}"
        raise UsageError(f"no notebook of this run has a parameter {name}; {hint}")


def parse_value(name: str, text: str, default: object) -> object:
    """Return the text as a value of the default's type: bool, int, float, str, or another literal such as a list."""
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        value = text
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if isinstance(default, list) and isinstance(value, tuple):
        value = list(value)  # so that seeds=0,1,2 needs no quotes in a shell
    if not _has_type_of(value, default):
        kinds = {int: "a whole number", float: "a number", bool: "True or False"}
        raise UsageError(f"-p {name}={text}: {name} must be {kinds.get(type(default), 'a value')} like {default!r}")
    return value


def check_value(name: str, value: object) -> object:
    """Return the value; UsageError when a common parameter is out of range."""
    if name in ("epochs", "batch_size") and value < 1:
        raise UsageError(f"{name} must be 1 or more, not {value}")
    if name == "lr" and not (value > 0 and math.isfinite(value)):
        raise UsageError(f"lr must be a number above 0, not {value}")
    if name == "seeds" and not value:
        raise UsageError("seeds must have at least one seed, for example [0]")
    if name == "seeds" and len(set(value)) < len(value):
        raise UsageError(f"seeds must differ from each other, not {value}: the same seed gives the same run again")
    return value


def _has_type_of(value: object, default: object) -> bool:
    """Whether the value has the default's type; the items of a list must have the type of its default's first item."""
    if default is None:
        return True
    if type(value) is not type(default):
        return False
    return not isinstance(default, list) or not default or all(type(item) is type(default[0]) for item in value)
