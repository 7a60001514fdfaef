"""Build the report's files from what is published, and record them in reports/report.json.

The folder page/ decides what the report says. This module decides when it has to be built again: its record holds a
hash of each of the report's files and of everything that it was built from.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from fer_utils.paths import PROJECT_ROOT, atomic_write
from fer_utils.pipeline.code_hash import normalize_module
from fer_utils.pipeline.freshness import GENERATED_PAGES, describe_damage, hash_content, read_record
from fer_utils.pipeline.provenance import read_last_run
from fer_utils.pipeline.publish import Folders
from fer_utils.pipeline.stages import STAGES
from fer_utils.pipeline.takeaways import read_question, read_takeaways

REPORT_FILES = (
    "summary.csv",
    "tables/claims.csv",
    "tables/anchors.csv",
    "test_openings.csv",
    "provenance.json",
    "report.html",
)
PACKAGE = Path(__file__).parents[1]
REPORT_CODE = (
    "pipeline/page/*.py",
    "pipeline/takeaways.py",
    "report.py",
    "assets/*.j2",
    "assets/report.css",
    "assets/anchors.csv",
)
REPORT_DOCS = ("docs/syllabus.md", "docs/glossary.md")  # quoted on the page


def make_report(folders: Folders, provenance: Mapping) -> None:
    """Build the report from everything that is published, and record its files. provenance: of the last run.

    Does nothing when nothing is published. ValueError or OSError when a published file is damaged.
    """
    if not folders.manifests():
        return
    from fer_utils.pipeline.page import build_report  # imports pandas, which is slow, so only when it is needed

    earlier = read_last_run(folders.reports).get("stages", {})  # for stages whose manifests have no record
    build_report(folders.reports, {**provenance, "stages": earlier | gather_facts(folders)})
    files = {path.relative_to(folders.root).as_posix(): hash_content(path) for path in find_report_files(folders)}
    record = {"files": files, "made_from": hash_sources(folders)}
    atomic_write(folders.report_record, (json.dumps(record, indent=1) + "\n").encode())


def report_is_up_to_date(folders: Folders) -> bool:
    """Whether the report's files are there, unchanged, and built from what is published now."""
    record = read_report_record(folders)
    has_same_sources = record["made_from"] == hash_sources(folders)
    return has_same_sources and bool(record["files"]) and not describe_damage(record["files"], folders.root)


def read_report_record(folders: Folders) -> dict[str, dict]:
    """Return the report's record with the keys "files" and "made_from"; both are empty when there is no record."""
    try:
        record = json.loads(folders.report_record.read_text(encoding="utf-8"))
        return {part: dict(record[part]) for part in ("files", "made_from")}
    except (OSError, ValueError, KeyError, TypeError):
        return {"files": {}, "made_from": {}}


def gather_facts(folders: Folders) -> dict[str, dict]:
    """Return stage -> facts about its run, for every stage whose manifest has a record."""
    records = {path.stem: read_record(path) for path in folders.manifests()}
    return {name: record.facts() for name, record in records.items() if record and record.depends is not None}


def find_report_files(folders: Folders) -> list[Path]:
    """Return the files that build_report wrote. Of the pages in docs/, only the generated tables count."""
    files = [folders.reports / name for name in REPORT_FILES]
    if folders.reports == PROJECT_ROOT / "reports":
        files += [PROJECT_ROOT / page for page in GENERATED_PAGES]
    return [path for path in files if path.is_file()]


def hash_sources(folders: Folders) -> dict[str, str]:
    """Return the hashes of what the report is built from: all manifests, the code of the page, and what it quotes."""
    sources = {path.relative_to(folders.root).as_posix(): path.read_bytes() for path in folders.manifests()}
    for path in sorted(path for pattern in REPORT_CODE for path in PACKAGE.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(PROJECT_ROOT).as_posix()
        sources[name] = (normalize_module(text) if path.suffix == ".py" else text).encode()
    sources |= {page: (PROJECT_ROOT / page).read_bytes() for page in REPORT_DOCS}
    for stage in STAGES:
        sources[f"notebooks/{stage.name}.ipynb"] = f"{read_question(stage.name)}\n{read_takeaways(stage.name)}".encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in sources.items()}
