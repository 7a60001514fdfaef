"""Write the files of the report from what the notebooks published."""

import json
from pathlib import Path

import pandas as pd

from fer_utils.paths import PROJECT_ROOT, atomic_write
from fer_utils.pipeline.page.render import render_page
from fer_utils.pipeline.page.tables import make_anchors_table, renew_docs
from fer_utils.report import CLAIM_COLUMNS, SUMMARY_COLUMNS, write_csv


def build_report(reports: Path, provenance: dict) -> None:
    """Write summary.csv, claims.csv, anchors.csv, provenance.json and report.html from what the notebooks published.

    reports: the folder that holds tables/, figures/ and manifests/. For the project's own reports, the tables of
    claims, results and times in docs/ are written as well. ValueError or OSError when a published file is damaged.
    """
    manifests = [read_manifest(path) for path in sorted((reports / "manifests").glob("*.json"))]
    summary = pd.DataFrame([row for m in manifests for row in m["summary"]], columns=SUMMARY_COLUMNS)
    summary["epochs"] = summary.epochs.astype("Int64")  # an ensemble has none
    claims = pd.DataFrame([row for m in manifests for row in m["claims"]], columns=CLAIM_COLUMNS)
    claims = claims.astype(dict.fromkeys(["n", "seeds", "epochs"], "Int64"))  # whole numbers, or missing
    page = render_page(reports, manifests, summary, claims, provenance)  # may fail, so nothing is written before it
    is_own = reports == PROJECT_ROOT / "reports"
    docs = renew_docs(PROJECT_ROOT, claims, summary, provenance) if is_own else {}
    (reports / "tables").mkdir(parents=True, exist_ok=True)
    write_csv(summary, reports / "summary.csv")
    write_csv(claims, reports / "tables" / "claims.csv")
    write_csv(make_anchors_table(summary), reports / "tables" / "anchors.csv")
    atomic_write(reports / "provenance.json", (json.dumps(provenance, indent=1, sort_keys=True) + "\n").encode())
    atomic_write(reports / "report.html", page.encode())
    for path, text in docs.items():
        atomic_write(path, text.encode())


def read_manifest(path: Path) -> dict:
    """Return the manifest of a notebook or benchmark; ValueError when the file is damaged."""
    try:
        manifest = json.loads(path.read_text(encoding="utf8"))
        missing = {"notebook", "artifacts", "summary", "claims"} - manifest.keys()
        missing |= {column for row in manifest["claims"] for column in CLAIM_COLUMNS if column not in row}
    except (ValueError, AttributeError, KeyError, TypeError):
        missing = {"everything"}
    if missing:
        raise ValueError(f"{path} is damaged; run {path.stem} again, or restore the file with git checkout")
    return manifest
