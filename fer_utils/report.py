"""The only writer of a notebook's results: its tables, figures, predictions, and rows of the summary and the claims."""

import json
from numbers import Integral
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from fer_utils.data.dataset import FER2013
from fer_utils.paths import atomic_write, project_path
from fer_utils.predict import Predictions

SUMMARY_COLUMNS = [
    *("notebook", "model", "profile", "device", "split", "n", "seeds", "accuracy", "accuracy_sd", "ci_low", "ci_high"),
    *("macro_f1", "accuracy_no_duplicates", "params", "gmacs", "epochs", "train_seconds", "images_per_second"),
]
CLAIM_COLUMNS = ["claim", "source", "claimed", "measured", "ci_low", "ci_high", "n", "verdict"]


class Report:
    """What one notebook publishes. Everything goes below one folder: tables/, figures/, predictions/, manifest.json."""

    def __init__(self, notebook: str, dataset: FER2013, profile: str, device: str, out: str | Path) -> None:
        """notebook: its name without ".ipynb". device: as tables should name it. out: folder, made if missing."""
        self.out, self.number = project_path(out), notebook[:2]
        self._manifest = {
            "notebook": notebook,
            "profile": profile,
            "device": device,
            "data_note": data_note(dataset),
            "artifacts": [],
            "summary": [],
            "claims": [],
        }
        self._write_manifest()

    def figure(self, fig: Figure, name: str, caption: str, alt: str, data: pd.DataFrame) -> None:
        """Show a figure and write figures/NAME.png, with the numbers it shows in figures/NAME.csv.

        alt: the description for readers who cannot see it. data: what is plotted, one row per mark.
        """
        path = self._path("figures", f"{name}.png")
        fig.savefig(path, metadata={"Software": None, "Description": alt})
        write_csv(data, path.with_suffix(".csv"))
        self._add("artifacts", {"kind": "figure", "name": name, "caption": caption, "alt": alt})
        display(fig)
        plt.close(fig)
        display(Markdown(f"*{caption}*"))

    def table(self, table: pd.DataFrame, name: str, caption: str, digits: int = 3) -> None:
        """Show a table and write tables/NAME.csv with full precision and tables/NAME.md rounded to `digits`."""
        path = self._path("tables", f"{name}.csv")
        write_csv(table, path)
        full_caption = " ".join(filter(None, [caption, self._manifest["data_note"]]))
        markdown = to_markdown(table, digits)
        atomic_write(path.with_suffix(".md"), f"{full_caption}\n\n{markdown}\n".encode())
        self._add("artifacts", {"kind": "table", "name": name, "caption": full_caption, "digits": digits})
        display(Markdown(f"*{full_caption}*\n\n{markdown}"))

    def predictions(self, name: str, predictions: Predictions) -> None:
        """Write predictions/NAME.npz, so that tables and tests can be redone without training."""
        predictions.save(self._path("predictions", f"{name}.npz"))

    def summary(self, **row: object) -> None:
        """Add a row to summary.csv: all SUMMARY_COLUMNS but notebook, profile and device, which are known here."""
        known = {key: self._manifest[key] for key in ("notebook", "profile", "device")}
        self._add("summary", _complete(known | row, SUMMARY_COLUMNS))

    @property
    def summary_rows(self) -> list[dict]:
        """The rows this notebook has added to summary.csv so far."""
        return self._manifest["summary"]

    def claim(self, **row: object) -> None:
        """Add a row to claims.csv: what was claimed, what was measured, and the verdict; columns are CLAIM_COLUMNS."""
        self._add("claims", _complete(row, CLAIM_COLUMNS))

    def _add(self, part: str, entry: dict) -> None:
        self._manifest[part].append(entry)
        self._write_manifest()

    def _write_manifest(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        atomic_write(self.out / "manifest.json", json.dumps(self._manifest, indent=1, default=_plain).encode())

    def _path(self, folder: str, file: str) -> Path:
        path = self.out / folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table with full precision, in the same bytes on every system."""
    atomic_write(path, table.to_csv(index=False, lineterminator="\n").encode())


def data_note(dataset: FER2013) -> str:
    """The sentence that goes under every table unless the data is FER2013 with its official counts."""
    if dataset.form == "sample":
        return "Embedded sample data: for trying out the code only."
    if dataset.form == "rafdb":
        return f"RAF-DB: {len(dataset.labels):,} images{'' if dataset.standard else ', not the official 15,339'}."
    return "" if dataset.standard else f"Non-standard data: {len(dataset.labels):,} images, not the official 35,887."


def to_markdown(table: pd.DataFrame, digits: int) -> str:
    """A Markdown table with floats rounded to `digits` and missing values as a dash."""
    return table.map(lambda value: format_cell(value, digits)).to_markdown(index=False, disable_numparse=True)


def format_cell(value: object, digits: int) -> str:
    """A table cell as text: floats rounded, whole numbers with thousands separators, missing values as a dash."""
    if pd.isna(value):
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, Integral) and not isinstance(value, bool) else str(value)


def _complete(row: dict, columns: list[str]) -> dict:
    """The row in column order; ValueError when a column is missing or unknown."""
    if set(row) != set(columns):
        wrong = ", ".join(sorted(set(row) ^ set(columns)))
        raise ValueError(f"a row needs exactly the columns {', '.join(columns)}; missing or unknown: {wrong}")
    return {column: row[column] for column in columns}


def _plain(value: object) -> object:
    """NumPy numbers as Python numbers, for JSON."""
    return value.item()
