"""Outputs of cells: merge the pieces of a stream, and cut what is too long to be read."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode  # slow, so not imported by a run that has nothing to do

MAX_CHARACTERS = 5_000_000  # of all outputs of one cell
MAX_LINE = 1000  # characters of a line in a published notebook
LEFT_OUT = f"[... output after {MAX_CHARACTERS:,} characters left out ...]"


def count_characters(value: object) -> int:
    """Return the number of characters in all texts of a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(count_characters, value.values()))
    return sum(map(count_characters, value)) if isinstance(value, list) else 0


def merge_streams(cell: "NotebookNode", **_: object) -> None:
    """Merge the pieces into which a kernel cuts what a cell prints, in the same way in every run.

    Each stream becomes one output, where its first piece was; stdout comes before a stderr next to it. Carriage returns
    overwrite the line as on a terminal. nbclient calls this with the cell, its index and the kernel's reply.
    """
    pieces: dict[str, list[str]] = {}
    outputs = []
    for output in cell.outputs:
        if output.output_type == "stream":
            pieces.setdefault(output.name, []).append(output.text)
        if output.output_type != "stream" or len(pieces[output.name]) == 1:
            outputs.append(output)
    streams = [output for output in outputs if output.output_type == "stream"]
    for output in streams:
        output.text = overwrite_lines("".join(pieces[output.name]))
    if [output.name for output in streams] == ["stderr", "stdout"]:
        first = outputs.index(streams[0])
        if outputs[first + 1] is streams[1]:
            outputs[first : first + 2] = reversed(streams)
    cell.outputs = outputs


def overwrite_lines(text: str) -> str:
    """Remove from each line what a carriage return lets the rest of the line overwrite, as in a progress bar."""
    return "\n".join(_overwrite_line(line) for line in text.split("\n")) if "\r" in text else text


def _overwrite_line(line: str) -> str:
    end = len(line.rstrip("\r"))
    return line[line.rfind("\r", 0, end) + 1 :]


def shorten(text: str, max_lines: int = 100) -> str:
    """Cut long lines, and replace the middle of a long text by the number of lines that it had."""
    lines, half = text.splitlines(keepends=True), max_lines // 2
    if len(lines) > max_lines:
        lines = [*lines[:half], f"[... {len(lines) - 2 * half} lines left out ...]\n", *lines[-half:]]
    return "".join(map(shorten_line, lines))


def shorten_line(line: str) -> str:
    """Return a line, or the beginning of a long one with the number of characters that it had."""
    text = line.rstrip("\n")
    if len(text) <= MAX_LINE:
        return line
    return f"{text[:MAX_LINE]} [... {len(text) - MAX_LINE:,} characters left out ...]{line[len(text) :]}"
