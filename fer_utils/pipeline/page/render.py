"""The page report.html: a front page, then one section for each notebook."""

from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader

from fer_utils.paths import ASSETS, PROJECT_ROOT
from fer_utils.pipeline.page.chart import draw_models
from fer_utils.pipeline.page.front import describe_certainty, gather_findings, make_cards, make_headline
from fer_utils.pipeline.page.html import markdown_to_html, section_to_html, to_html
from fer_utils.pipeline.page.names import readable_table, readable_text, readable_title
from fer_utils.pipeline.page.pictures import FOLDED_DPI, SHARP_DPI, encode_picture
from fer_utils.pipeline.page.story import SAMPLE_BANNER, SAMPLE_TITLE, TELLING_FIGURES, TITLE
from fer_utils.pipeline.page.tables import format_claims, make_anchors_table
from fer_utils.pipeline.stages import STAGES
from fer_utils.pipeline.takeaways import read_question, read_takeaways
from fer_utils.report import CLAIM_PROJECTS

DOCS = PROJECT_ROOT / "docs"
YES_OR_NO = {True: "yes", False: "no"}


def render_page(
    reports: Path, manifests: list[dict], summary: pd.DataFrame, claims: pd.DataFrame, provenance: dict
) -> str:
    """Return a self-contained HTML page with every published figure and table.

    With results of the embedded sample, the page gets another title and a banner, no findings, takeaways or verdicts,
    and our accuracies are not listed next to those that others report: such numbers must never look like a result.
    """
    is_sample = contains_sample(manifests)
    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True)
    published = {manifest["notebook"]: manifest for manifest in manifests}
    names = sorted(stage.name for stage in STAGES)
    others = [name for name in published if name not in names]
    return environment.get_template("report.html.j2").render(
        is_sample=is_sample,
        title=SAMPLE_TITLE if is_sample else TITLE,
        banner=SAMPLE_BANNER,
        headline="" if is_sample else make_headline(summary),
        findings=[] if is_sample else gather_findings(reports, published),
        chart="" if is_sample else draw_models(environment, summary),
        certainty=describe_certainty(summary, manifests, provenance),
        claims_title="Claims, not tested" if is_sample else "Claims tested again",
        cards=[] if is_sample else make_cards(claims),
        projects=_make_claim_sections(claims, is_sample),
        anchors=_show(make_anchors_table(summary[:0] if is_sample else summary), 4),
        summary=_show(summary, 4),
        sections=[make_section(name, published.get(name), reports, provenance, is_sample) for name in names],
        others=[make_section(name, published[name], reports, provenance, is_sample) for name in others],
        teaching={} if is_sample else make_teaching_pack(reports),
        provenance=make_provenance_tables(provenance),
    )


def contains_sample(manifests: list[dict]) -> bool:
    """Whether any of the published results comes from the embedded sample."""
    return any(manifest.get("profile") == "sample" for manifest in manifests)


def _show(table: pd.DataFrame, digits: int, name: str = "") -> str:
    return to_html(readable_table(table, digits, name))


def _make_claim_sections(claims: pd.DataFrame, is_sample: bool) -> list[dict]:
    """Return, for each project, its title, link and year, and its claims as HTML; no verdicts for the sample."""
    sections = []
    for project, table in format_claims(claims).items():
        html = to_html(_drop_verdicts(table) if is_sample else table)
        sections.append({"key": project, "project": CLAIM_PROJECTS[project], "html": html})
    return sections


def _drop_verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table without its columns of verdicts, such as verdict and verdict_no_duplicates."""
    return table[[column for column in table if not column.startswith("verdict")]]


# --- Notebooks --------------------------------------------------------------------------------------------------------


def make_section(name: str, manifest: dict | None, reports: Path, provenance: dict, is_sample: bool) -> dict:
    """Return what the section of a notebook or benchmark shows; manifest: None when nothing is published yet."""
    section = {
        "notebook": name,
        "number": name[:2] if name[:2].isdigit() else "",
        "label": readable_title(name),
        "title": read_question(name),
        "takeaways": "" if is_sample else markdown_to_html(read_takeaways(name)),
        "run": provenance.get("stages", {}).get(name),
    }
    if manifest is None:
        return section | {"telling": [], "folded": [], "is_published": False}
    telling = TELLING_FIGURES.get(name, ())
    artifacts = [load_artifact(reports, artifact, telling, is_sample) for artifact in manifest["artifacts"]]
    section |= {key: manifest.get(key, "") for key in ("profile", "device", "data_note")}
    section["telling"] = [artifact for artifact in artifacts if _is_telling(artifact, telling)]
    section["folded"] = [artifact for artifact in artifacts if not _is_telling(artifact, telling)]
    return section | {"is_published": True}


def _is_telling(artifact: dict, telling: tuple[str, ...]) -> bool:
    return artifact["kind"] == "figure" and artifact["name"] in telling


def load_artifact(reports: Path, artifact: dict, telling: tuple[str, ...], is_sample: bool) -> dict:
    """Add to an artifact its heading, and its picture or its HTML table; tables of the sample lose their verdicts."""
    name = artifact["name"]
    words = {"heading": readable_title(name), "caption": readable_text(artifact["caption"])}
    if artifact["kind"] == "figure":
        dpi = SHARP_DPI if name in telling else FOLDED_DPI
        return artifact | words | encode_picture(reports / "figures" / f"{name}.png", dpi)
    table = pd.read_csv(reports / "tables" / f"{name}.csv", keep_default_na=False, na_values=[""])
    shown = _drop_verdicts(table) if is_sample else table
    return artifact | words | {"html": _show(shown, artifact["digits"], name), "rows": len(table)}


# --- Teaching pack and provenance -------------------------------------------------------------------------------------


def make_teaching_pack(reports: Path) -> dict[str, str]:
    """Return title -> HTML of the parts of docs/ that a lecturer needs."""
    syllabus = DOCS / "syllabus.md"
    parts = {
        "Syllabus: hours, what is learned, what to hand in": "The notebooks",
        "How to grade": "How to grade",
        "Long path: all twelve notebooks": "Long path",
        "Short path: five notebooks": "Short path",
        "Before the first lesson": "Before the first lesson",
        "Further reading": "Further reading",
    }
    pack = {title: section_to_html(syllabus, heading, reports) for title, heading in parts.items()}
    return pack | {"Glossary": section_to_html(DOCS / "glossary.md", "", reports)}


def make_provenance_tables(provenance: dict) -> dict[str, str]:
    """Return title -> HTML table: the last run, the run of each notebook, and the versions of packages."""
    data = provenance.get("data", {})
    facts = {
        "commit": provenance.get("commit"),
        "code changed since that commit": YES_OR_NO.get(provenance.get("dirty")),
        "profile": provenance.get("profile"),
        "device": provenance.get("device"),
        "data": data.get("source"),
        "fingerprint of the data": data.get("fingerprint"),
        "official number of images": YES_OR_NO.get(data.get("standard")),
        "notes on the data": "; ".join(data.get("notes", [])),
    }
    last = pd.DataFrame([fact for fact in facts.items() if fact[1]], columns=["fact", "value"])
    versions = pd.DataFrame(sorted(provenance.get("versions", {}).items()), columns=["package", "version"])
    runs = pd.DataFrame([_describe_run(name, facts) for name, facts in sorted(provenance.get("stages", {}).items())])
    tables = {"The last run": last, "The run of each notebook": runs, "Versions": versions}
    return {title: to_html(table.astype(str)) for title, table in tables.items() if len(table)}


def _describe_run(name: str, facts: dict) -> dict[str, str]:
    """Return a row of the table of runs; facts that a run did not record are a dash."""
    parameters = ", ".join(f"{key} = {value}" for key, value in facts.get("parameters", {}).items())
    return {
        "notebook": name,
        "finished": facts.get("finished", "-")[:16].replace("T", " "),
        "commit": (facts.get("commit") or "-")[:7] + (" with changes" if facts.get("dirty") else ""),
        "profile": facts.get("profile", "-"),
        "device": facts.get("device_name") or facts.get("device", "-"),
        "minutes": f"{facts['seconds'] / 60:.1f}" if "seconds" in facts else "-",
        "peak memory": f"{facts['peak_memory_mb'] / 1000:.1f} GB" if "peak_memory_mb" in facts else "-",
        "data": facts.get("data", "-"),
        "parameters": parameters or "as in stages.py",
    }
