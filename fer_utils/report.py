"""Write the results of a notebook: tables, figures, predictions, and rows of the summary and the claims."""

import json
import math
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from fer_utils.data.dataset import FaceDataset
from fer_utils.paths import atomic_write, project_path
from fer_utils.predict import Predictions

SUMMARY_COLUMNS = [
    *("notebook", "model", "profile", "device", "split", "n", "seeds", "accuracy", "accuracy_sd", "ci_low", "ci_high"),
    *("macro_f1", "accuracy_no_duplicates", "params", "gmacs", "epochs", "train_seconds", "images_per_second"),
]
CLAIM_COLUMNS = [
    *("id", "project", "claim", "unit", "claimed_low", "claimed_high", "measured", "ci_low", "ci_high"),
    *("n", "seeds", "epochs", "start", "conditions", "verdict"),
]
CLAIM_NUMBERS = CLAIM_COLUMNS[4:12]  # from claimed_low to epochs
SAMPLE_NOTE = "Embedded sample data: for trying out the code only."


@dataclass(frozen=True)
class ClaimProject:
    """A student project whose claims are tested here."""

    title: str  # as its write-up prints it
    link: str | None = None  # address of its code, where the write-up prints one
    year: int | None = None  # where the write-up prints one


CLAIM_PROJECTS = {
    "landmark-attention": ClaimProject("Facial Expression Recognition with Landmark Detection"),
    "lenet-transfer": ClaimProject(
        "Facial Emotion Recognition", link="https://github.com/Tempest1ss1mo/facial-emotion-recognition"
    ),
    "efficientnet-ensemble": ClaimProject("Facial Expression Recognition System", year=2025),
    "local-global": ClaimProject("Facial Emotion Recognition with Deep Learning"),
}


class Report:
    """The published results of one notebook, in one folder: tables/, figures/, predictions/ and manifest.json."""

    def __init__(self, notebook: str, dataset: FaceDataset, profile: str, device: str, out: str | Path) -> None:
        """notebook: its name without ".ipynb". device: its name in tables. out: folder, created if missing."""
        self.out, self.number = project_path(out), notebook[:2]
        self._is_sample = dataset.form == "sample"
        self._manifest: dict[str, Any] = {
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
        """Show a figure and write it to figures/NAME.png and its data to figures/NAME.csv.

        alt: description for readers who cannot see the figure. data: the plotted numbers, one row per mark.
        """
        path = self._path("figures", f"{name}.png")
        fig.savefig(path, metadata={"Software": None, "Description": alt})
        write_csv(data, path.with_suffix(".csv"))
        self._add("artifacts", {"kind": "figure", "name": name, "caption": caption, "alt": alt})
        display(fig)
        plt.close(fig)
        display(Markdown(f"*{caption}*"))

    def table(self, table: pd.DataFrame, name: str, caption: str, digits: int = 3) -> None:
        """Show a table; write tables/NAME.csv with full precision and tables/NAME.md with `digits` decimals."""
        path = self._path("tables", f"{name}.csv")
        write_csv(table, path)
        full_caption = " ".join(filter(None, [caption, self._manifest["data_note"]]))
        markdown = to_markdown(table, digits)
        atomic_write(path.with_suffix(".md"), f"{full_caption}\n\n{markdown}\n".encode())
        self._add("artifacts", {"kind": "table", "name": name, "caption": full_caption, "digits": digits})
        display(Markdown(f"*{full_caption}*\n\n{markdown}"))

    def warn_if_sample(self) -> None:
        """Say above printed verdicts that they mean nothing on the embedded sample; on other data, show nothing."""
        if self._is_sample:
            display(Markdown(f"> **{SAMPLE_NOTE}** Whatever verdict follows, it says nothing about faces or methods."))

    def predictions(self, name: str, predictions: Predictions) -> None:
        """Write predictions/NAME.npz, from which tables and tests can be repeated without training."""
        predictions.save(self._path("predictions", f"{name}.npz"))

    def summary(self, **row: object) -> None:
        """Add a row to summary.csv: all SUMMARY_COLUMNS except notebook, profile and device, which are filled in."""
        own = {key: self._manifest[key] for key in ("notebook", "profile", "device")}
        self._add("summary", _complete(own | row, SUMMARY_COLUMNS))

    @property
    def summary_rows(self) -> list[dict]:
        """The rows that this notebook has added to summary.csv so far."""
        return self._manifest["summary"]

    def claim(
        self,
        *,
        id: str,
        project: str,
        claim: str,
        unit: str,
        claimed: float | tuple[float, float] | None,
        measured: float | None,
        ci_low: float | None,
        ci_high: float | None,
        n: int | None,
        seeds: int | None,
        epochs: int | None,
        start: str,
        conditions: str,
        verdict: str,
    ) -> None:
        """Add a row to claims.csv: what a student project claimed, what this notebook measured, and the verdict.

        id: stable, unique, and starts with the notebook's number. project: a key of CLAIM_PROJECTS.
        unit: of claimed, measured and the interval, such as "%" or "points".
        claimed: a number, (low, high) for a range, or None where the claim is in words.
        measured, ci_low, ci_high: None where nothing was measured. n: test images behind `measured`.
        seeds, epochs: None where nothing is trained. start: "scratch", "ImageNet", "landmarks", ...; "" likewise.
        conditions: how our conditions differ from those of the claim, in one sentence; "" if they do not.
        ValueError for an unknown project, an id that is taken or of another notebook, or a number that is not finite.
        """
        claimed_low, claimed_high = claimed if isinstance(claimed, tuple) else (claimed, claimed)
        row = {
            **{"id": id, "project": project, "claim": claim, "unit": unit},
            **{"claimed_low": claimed_low, "claimed_high": claimed_high},
            **{"measured": measured, "ci_low": ci_low, "ci_high": ci_high},
            **{"n": n, "seeds": seeds, "epochs": epochs},
            **{"start": start, "conditions": conditions, "verdict": verdict},
        }
        self._check_claim(row)
        self._add("claims", row)

    def _check_claim(self, row: dict) -> None:
        if row["project"] not in CLAIM_PROJECTS:
            known = ", ".join(CLAIM_PROJECTS)
            raise ValueError(f"claim {row['id']}: no project {row['project']!r}; use one of {known}")
        if not row["id"].startswith(f"{self.number}_"):
            raise ValueError(f"claim {row['id']}: the id must start with the notebook's number, {self.number}_")
        if row["id"] in (other["id"] for other in self._manifest["claims"]):
            raise ValueError(f"claim {row['id']}: the id is taken; give each claim its own, or run the notebook again")
        for column in CLAIM_NUMBERS:
            if row[column] is not None and not math.isfinite(row[column]):
                raise ValueError(f"claim {row['id']}: {column} is {row[column]}; pass a finite number, or None")

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
    """Write a table with full precision; the bytes are the same on every operating system."""
    atomic_write(path, table.to_csv(index=False, lineterminator="\n").encode())


def data_note(dataset: FaceDataset) -> str:
    """Return a sentence about the data for every table caption; "" for FER2013 with its official counts."""
    if dataset.form == "sample":
        return SAMPLE_NOTE
    if dataset.form == "rafdb":
        return f"RAF-DB: {len(dataset.labels):,} images{'' if dataset.standard else ', not the official 15,339'}."
    return "" if dataset.standard else f"Non-standard data: {len(dataset.labels):,} images, not the official 35,887."


def to_markdown(table: pd.DataFrame, digits: int) -> str:
    """Format a table as Markdown, with floats rounded to `digits` decimals and a dash for missing values."""
    return format_table(table, digits).to_markdown(index=False, disable_numparse=True)


def format_table(table: pd.DataFrame, digits: int) -> pd.DataFrame:
    """Format all cells of a table as text. A small p-value is never rounded to 0: it reads "< 0.001"."""
    texts = {}
    for name in table:
        smallest = 10.0**-digits if is_p_value(str(name)) else None
        texts[name] = [format_cell(value, digits, smallest) for value in table[name]]
    return pd.DataFrame(texts, index=table.index, columns=table.columns)


def is_p_value(column: str) -> bool:
    """Whether a column holds p-values, by its name: p_value, p_holm, mcnemar_p."""
    return column.startswith("p_") or column.endswith("_p")


def format_cell(value: Any, digits: int, smallest: float | None = None) -> str:
    """Format a table cell: floats rounded, whole numbers with thousands separators, a dash for missing values.

    smallest: the smallest number that is written out; None: all are.
    """
    if pd.isna(value):
        return "-"
    if smallest is not None and value < smallest:
        return f"< {smallest:.{digits}f}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, Integral) and not isinstance(value, bool) else str(value)


def _complete(row: dict, columns: list[str]) -> dict:
    """Return the row in the order of the columns; ValueError if a column is missing or unknown."""
    if set(row) != set(columns):
        wrong = ", ".join(sorted(set(row) ^ set(columns)))
        raise ValueError(f"a row needs exactly the columns {', '.join(columns)}; missing or unknown: {wrong}")
    return {column: row[column] for column in columns}


def _plain(value: np.generic) -> object:
    """Convert a NumPy number to a Python number, for JSON."""
    return value.item()
