"""The content of the report: summary, claims, anchors, report.html, and the tables in docs/."""

import base64
import json
import re
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader

from fer_utils.paths import ASSETS, PROJECT_ROOT, atomic_write
from fer_utils.pipeline.execution import shrink_picture
from fer_utils.pipeline.freshness import GENERATED_PAGES
from fer_utils.report import CLAIM_COLUMNS, CLAIM_PROJECTS, SUMMARY_COLUMNS, format_cell, format_table, write_csv

CLAIMS_BEGIN, CLAIMS_END = "<!-- claims: generated from reports/tables/claims.csv -->", "<!-- end of claims -->"
RESULTS_BEGIN, RESULTS_END = "<!-- results: generated from reports/summary.csv -->", "<!-- end of results -->"
TIMES_BEGIN, TIMES_END = "<!-- times: generated from reports/provenance.json -->", "<!-- end of times -->"

TITLE = "Facial expression recognition on FER2013: report"
SAMPLE_TITLE = "Embedded sample: test run of the course, no results"
SAMPLE_BANNER = "Embedded sample: these numbers say nothing about FER2013"

# The claims that docs/results.md shows. claims.csv has all of them, also for single landmarks, emotions and versions.
MAIN_CLAIMS = (
    "02_no_face",
    "03_error_mean",
    "04_baseline_accuracy",
    "05_attention_accuracy",
    "05_attention_gain_original",
    "05_attention_gain_ours",
    "06_accuracy_crp",
    "07_two_models_accuracy",
    "07_two_models_cost",
    "07_single_model_efficiency",
    "08_surprise",
    "08_fear",
    "08_happy",
    "08_sad",
    "10_resnet18_fine_tuned",
    "11_rafdb_accuracy",
)
CLAIM_DECIMALS = {"%": 1, "fraction": 4, "GMACs": 9}  # of measured values, by the unit's first word; others have 2


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


def render_page(
    reports: Path, manifests: list[dict], summary: pd.DataFrame, claims: pd.DataFrame, provenance: dict
) -> str:
    """Return a self-contained HTML page: claims, summary, every figure and table with its caption, provenance.

    With results of the embedded sample, the page gets another title and a banner, no table has verdicts, and our
    accuracies are not listed next to those that others report: such numbers must never look like a result.
    """
    is_sample = contains_sample(manifests)
    sections = [_make_section(reports, manifest, provenance, is_sample) for manifest in manifests]
    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True)
    return environment.get_template("report.html.j2").render(
        is_sample=is_sample,
        title=SAMPLE_TITLE if is_sample else TITLE,
        banner=SAMPLE_BANNER,
        claims_title="Claims, not tested" if is_sample else "Claims tested again",
        sections=sections,
        projects=_make_claim_sections(claims, is_sample),
        anchors=to_html(make_anchors_table(summary[:0] if is_sample else summary), 4),
        summary=to_html(summary, 4),
        provenance=json.dumps(provenance, indent=2, sort_keys=True),
    )


def contains_sample(manifests: list[dict]) -> bool:
    """Whether any of the published results comes from the embedded sample."""
    return any(manifest.get("profile") == "sample" for manifest in manifests)


def _make_claim_sections(claims: pd.DataFrame, is_sample: bool) -> list[dict]:
    """Return, for each project, its title, link and year, and its claims as HTML; no verdicts for the sample."""
    sections = []
    for project, table in format_claims(claims).items():
        html = to_html(_drop_verdicts(table) if is_sample else table, 0)
        sections.append({"key": project, "project": CLAIM_PROJECTS[project], "html": html})
    return sections


def _make_section(reports: Path, manifest: dict, provenance: dict, is_sample: bool) -> dict:
    """Add to a manifest what its section shows: title, facts about its run, pictures and tables."""
    artifacts = [_load_artifact(reports, artifact, is_sample) for artifact in manifest["artifacts"]]
    run = provenance.get("stages", {}).get(manifest["notebook"])
    return manifest | {"title": _read_title(manifest["notebook"]), "artifacts": artifacts, "run": run}


def _load_artifact(reports: Path, artifact: dict, is_sample: bool) -> dict:
    """Add the picture as a data URI, or the table as HTML, to an artifact; tables of the sample lose their verdicts."""
    if artifact["kind"] == "figure":
        png = (reports / "figures" / f"{artifact['name']}.png").read_bytes()
        data = {"image/png": base64.b64encode(png).decode()}
        shrink_picture(data)
        [(kind, picture)] = data.items()
        return artifact | {"src": f"data:{kind};base64,{picture}"}
    table = pd.read_csv(reports / "tables" / f"{artifact['name']}.csv", keep_default_na=False, na_values=[""])
    return artifact | {"html": to_html(_drop_verdicts(table) if is_sample else table, artifact["digits"])}


def _drop_verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table without its columns of verdicts, such as verdict and verdict_no_duplicates."""
    return table[[column for column in table if not column.startswith("verdict")]]


def _read_title(name: str) -> str:
    """Return the title of a notebook, which is its question; the name itself when there is no such notebook."""
    notebook = PROJECT_ROOT / "notebooks" / f"{name}.ipynb"
    if not notebook.is_file():
        return name.replace("_", " ")
    first = json.loads(notebook.read_text(encoding="utf8"))["cells"][0]["source"]
    return "".join(first).splitlines()[0].lstrip("# ")


def to_html(table: pd.DataFrame, digits: int) -> str:
    """Return an HTML table with floats rounded to `digits` and missing values as a dash.

    Cells are marked as short or long, so that the style sheet can keep a browser from wrapping a long text after every
    word. Column names may wrap after an underscore, because a table that is too wide for the paper shrinks the whole
    print. An interval such as (0.1 to 0.2) stays on one line.
    """
    html = (
        format_table(table.astype(object), digits)
        .to_html(index=False, border=0, justify="left")
        .replace("<th>", '<th scope="col">')
    )
    html = re.sub(r"(?<=_)(?=[^<>]*</th>)", "<wbr>", html)
    html = re.sub(r"\([^() ]+ to [^() ]+\)", lambda interval: interval[0].replace(" ", "&nbsp;"), html)
    html = re.sub(r"<td>([^<]{1,24})</td>", r'<td class="short">\1</td>', html)
    return re.sub(r"<td>([^<]{50,})</td>", r'<td class="long">\1</td>', html)


# --- Tables -----------------------------------------------------------------------------------------------------------


def make_anchors_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies that others report for FER2013's test split, and the split on which they chose their model.

    The last rows are ours: the model that is best on val, and the ensemble that was chosen on val.
    """
    summary = summary[~summary.model.str.endswith("_on_rafdb")]
    ensembles = summary[summary.model.str.startswith("ensemble_")]
    best = summary[summary.split == "val"].sort_values("accuracy", ascending=False, kind="stable").head(1)
    is_best = summary.notebook.isin(best.notebook) & summary.model.isin(best.model) & (summary.split == "test")
    ours = [
        {
            "work": f"this project: {row.model}, notebook {row.notebook[:2]}",
            "claimed": f"{row.accuracy:.2%}",
            "selected_on": "val",
            "remark": f"measured, n = {row.n:,}, 95 % interval {row.ci_low:.1%} to {row.ci_high:.1%}",
        }
        for row in pd.concat([summary[is_best], ensembles]).itertuples()
    ]
    return pd.concat([pd.read_csv(ASSETS / "anchors.csv"), pd.DataFrame(ours)], ignore_index=True)


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
