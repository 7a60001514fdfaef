"""The tables of anchors and claims, and the tables of claims, results and times in docs/."""

from pathlib import Path

import pandas as pd

from fer_utils.paths import ASSETS
from fer_utils.pipeline.freshness import GENERATED_PAGES
from fer_utils.pipeline.page.story import MAIN_CLAIMS
from fer_utils.report import CLAIM_PROJECTS, format_cell

CLAIMS_BEGIN, CLAIMS_END = "<!-- claims: generated from reports/tables/claims.csv -->", "<!-- end of claims -->"
RESULTS_BEGIN, RESULTS_END = "<!-- results: generated from reports/summary.csv -->", "<!-- end of results -->"
TIMES_BEGIN, TIMES_END = "<!-- times: generated from reports/provenance.json -->", "<!-- end of times -->"

CLAIM_DECIMALS = {"%": 1, "fraction": 4, "GMACs": 9}  # of measured values, by the unit's first word; others have 2


def make_anchors_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies that others report for FER2013's test split, and the split on which they chose their model.

    The last rows are ours: the model that is best on val, and the other ensembles that were chosen on val.
    """
    ours = [
        {
            "work": f"this project: {row.model}, notebook {row.notebook[:2]}",
            "claimed": f"{row.accuracy:.2%}",
            "selected_on": "val",
            "remark": f"measured, n = {row.n:,}, 95 % interval {row.ci_low:.1%} to {row.ci_high:.1%}",
        }
        for row in find_chosen(summary).itertuples()
    ]
    return pd.concat([pd.read_csv(ASSETS / "anchors.csv"), pd.DataFrame(ours)], ignore_index=True)


def find_chosen(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the test rows of what was chosen on val: the model that is best there, and the other ensembles."""
    summary = summary[~summary.model.str.endswith("_on_rafdb")]
    best = summary[summary.split == "val"].sort_values("accuracy", ascending=False, kind="stable").head(1)
    is_best = summary.notebook.isin(best.notebook) & summary.model.isin(best.model)
    is_ensemble = summary.model.str.startswith("ensemble_")
    on_test = summary.split == "test"
    return pd.concat([summary[on_test & is_best], summary[on_test & is_ensemble & ~is_best]])


def format_claims(claims: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return project -> its claims as a table of texts, for every project that has claims.

    claims: rows of claims.csv. "measured" has the 95 % interval in brackets; values carry their units.
    """
    facts = ["n", "seeds", "epochs", "start", "conditions", "verdict"]
    tables = {}
    for project in CLAIM_PROJECTS:
        rows = claims[claims.project == project].to_dict("records")
        texts = [
            {"claim": row["claim"], "claimed": _format_claimed(row), "measured": _format_measured(row)}
            | {fact: format_cell(row[fact], 0) or "-" for fact in facts}
            for row in rows
        ]
        if texts:
            tables[project] = pd.DataFrame(texts)
    return tables


def _format_claimed(row: dict) -> str:
    """Format what a project claimed as it prints it: "52.38 %", "60-65 %" or "+4.2 points"."""
    if pd.isna(row["claimed_low"]):
        return "in words"
    ends = dict.fromkeys([row["claimed_low"], row["claimed_high"]])  # one number, or the two ends of a range
    return _add_unit("-".join(f"{end:{_sign(row['unit'])}.10g}" for end in ends), row["unit"])


def _format_measured(row: dict) -> str:
    """Format a measured value and its interval: "52.4 % (50.8 to 54.0)"."""
    if pd.isna(row["measured"]):
        return "-"
    decimals = CLAIM_DECIMALS.get(row["unit"].partition(" ")[0], 2)
    style = f"{_sign(row['unit'])}.{decimals}f"
    measured = _add_unit(f"{row['measured']:{style}}", row["unit"])
    return measured if pd.isna(row["ci_low"]) else f"{measured} ({row['ci_low']:{style}} to {row['ci_high']:{style}})"


def _sign(unit: str) -> str:
    return "+" if unit == "points" else ""


def _add_unit(number: str, unit: str) -> str:
    """Write the unit behind a number: "0.0211 of image width" for a "fraction of image width"."""
    return f"{number} {unit.removeprefix('fraction ')}"


def make_claims_table(claims: pd.DataFrame) -> str:
    """Return the claims of docs/results.md: for each project a heading, and a Markdown row for each of MAIN_CLAIMS."""
    parts = []
    for key, table in format_claims(claims[claims.id.isin(MAIN_CLAIMS)]).items():
        project = CLAIM_PROJECTS[key]
        title = f"[{project.title}]({project.link})" if project.link else project.title
        parts.append(f"### {title}{f' ({project.year})' if project.year else ''}")
        parts.append(table.to_markdown(index=False, disable_numparse=True))
    return "\n\n".join(parts)


def make_results_table(summary: pd.DataFrame) -> str:
    """Return the results table of docs/results.md: one Markdown row per model, with its accuracy on test in percent.

    n, profile and device are written above the table instead if they are the same in all rows.
    """
    percent = "{:.1%}".format
    rows = [
        {
            "notebook": row.notebook,
            "model": row.model,
            "n": f"{row.n:,}",
            "accuracy": percent(row.accuracy),
            "95 % interval": f"{percent(row.ci_low)} - {percent(row.ci_high)}",
            "macro-F1": f"{row.macro_f1:.3f}",
            "without copies": percent(row.accuracy_no_duplicates),
            "seeds": row.seeds,
            "GMACs": f"{row.gmacs:.3f}",
            "profile": row.profile,
            "device": row.device,
        }
        for row in summary[(summary.split == "test") & ~summary.model.str.endswith("_on_rafdb")].itertuples()
    ]
    table = pd.DataFrame(rows)
    constant = [column for column in ("n", "profile", "device") if table[column].nunique() == 1]
    facts = " ".join(["Split: test.", *(f"{column}: {table[column][0]}." for column in constant)])
    return f"{facts}\n\n" + table.drop(columns=constant).to_markdown(index=False, disable_numparse=True)


def make_times_table(provenance: dict) -> str:
    """Return the table of times in docs/running.md: one Markdown row per notebook, measured in its last run."""
    rows = [
        {
            "notebook": name,
            "minutes": f"{facts['seconds'] / 60:.1f}",
            "peak memory": f"{facts['peak_memory_mb'] / 1000:.1f} GB",
            "profile": facts["profile"],
        }
        for name, facts in sorted(provenance["stages"].items())
    ]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def renew_docs(root: Path, claims: pd.DataFrame, summary: pd.DataFrame, provenance: dict) -> dict[Path, str]:
    """Return page -> its text with new tables of claims, results and times.

    root: the folder that holds docs/. OSError when a page is missing, ValueError when one of its markers is missing.
    """
    results, running = (root / page for page in GENERATED_PAGES)
    blocks = {
        results: [
            (CLAIMS_BEGIN, CLAIMS_END, make_claims_table(claims)),
            (RESULTS_BEGIN, RESULTS_END, make_results_table(summary)),
        ],
        running: [(TIMES_BEGIN, TIMES_END, make_times_table(provenance))],
    }
    texts = {}
    for path, tables in blocks.items():
        texts[path] = path.read_text(encoding="utf8")
        for begin, end, table in tables:
            texts[path] = _replace_block(texts[path], path.name, begin, end, table)
    return texts


def _replace_block(text: str, page: str, begin: str, end: str, table: str) -> str:
    """Replace what is between the lines `begin` and `end`; ValueError unless the text has both exactly once."""
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"docs/{page} must have the lines {begin} and {end} once each; restore them")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"
