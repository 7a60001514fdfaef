"""The list of all published runs that evaluated the test split: reports/test_openings.csv.

Choices are made on val, but test results of earlier runs are known when code or parameters change. So every one of
them stays on record, also after a later run has replaced its tables.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from fer_utils.paths import atomic_write

FILE = "test_openings.csv"
COLUMNS = (
    *("finished", "commit", "notebook", "profile", "device", "model"),
    *("n", "seeds", "epochs", "accuracy", "accuracy_no_duplicates", "changed"),
)


def append_openings(path: Path, summary: Sequence[Mapping], run: Mapping) -> None:
    """Add a row for each model that a published run has evaluated on test.

    summary: rows of the run's manifest. run: facts of the run, of which finished and commit are kept.
    """
    rows = read_openings(path)
    new = [row for row in summary if row["split"] == "test"]
    for row in new:
        earlier = [old for old in rows if all(old[key] == str(row[key]) for key in ("notebook", "model", "profile"))]
        entry = {"finished": run.get("finished", ""), "commit": str(run.get("commit") or "")[:10]}
        entry |= {column: row[column] for column in COLUMNS[2:-1]}
        texts = {column: "" if value is None or value != value else str(value) for column, value in entry.items()}
        rows.append(texts | {"changed": describe_change(texts, earlier[-1] if earlier else None)})
    if new:
        stream = io.StringIO()
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write(path, stream.getvalue().encode())


def read_openings(path: Path) -> list[dict[str, str]]:
    """The rows so far, oldest first; [] when there is no file yet."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def describe_change(row: Mapping[str, str], earlier: Mapping[str, str] | None) -> str:
    """What is different from the run before, as far as the rows show it."""
    if earlier is None:
        return "first published run"
    if row["accuracy"] == earlier["accuracy"]:
        return "same result"
    changes = [
        f"{key} {earlier[key]} -> {row[key]}" for key in ("epochs", "seeds", "device") if row[key] != earlier[key]
    ]
    return ", ".join(changes) or "code or inputs"
