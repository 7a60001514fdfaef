"""What is published: the report that is built from it, and whether it comes from the runs that manifests record.

The report has a record of its own, reports/report.json: a hash of each of its files, and of all it was built from.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from fer_utils.paths import PROJECT_ROOT, atomic_write
from fer_utils.pipeline.freshness import (
    GENERATED_PAGES,
    content_hash,
    damaged,
    damaged_checkpoints,
    missing_record,
    read_record,
)
from fer_utils.pipeline.meaning import module_meaning
from fer_utils.pipeline.provenance import last_run
from fer_utils.pipeline.publish import Folders

REPORT_FILES = (
    "summary.csv",
    "tables/claims.csv",
    "tables/anchors.csv",
    "test_openings.csv",
    "provenance.json",
    "report.html",
)
PACKAGE = Path(__file__).parents[1]
REPORT_CODE = ("pipeline/page.py", "report.py", "assets/report.html.j2", "assets/anchors.csv")


# --- Build the report -------------------------------------------------------------------------------------------------


def make_report(folders: Folders, provenance: Mapping) -> None:
    """Build the report from all that is published, and record its files. provenance: of the last run.

    Does nothing when nothing is published. ValueError or OSError when what is published is damaged.
    """
    if not folders.manifests():
        return
    from fer_utils.pipeline.page import build_report  # imports pandas: too slow for a run with nothing to do

    earlier = last_run(folders.reports).get("stages", {})  # of stages whose manifests have no record
    build_report(folders.reports, {**provenance, "stages": earlier | published_facts(folders)})
    files = {path.relative_to(folders.root).as_posix(): content_hash(path) for path in report_files(folders)}
    record = {"files": files, "made_from": report_sources(folders)}
    atomic_write(folders.report_record, (json.dumps(record, indent=1) + "\n").encode())


def report_is_up_to_date(folders: Folders) -> bool:
    """Whether the files that build_report wrote are there, unchanged, and made from what is published now."""
    record = read_report_record(folders)
    made = record["made_from"] == report_sources(folders)
    return made and bool(record["files"]) and not damaged(record["files"], folders.root)


def read_report_record(folders: Folders) -> dict[str, dict]:
    """The record of the report, in two parts, "files" and "made_from"; both empty where there is none."""
    try:
        record = json.loads(folders.report_record.read_text(encoding="utf-8"))
        return {part: dict(record[part]) for part in ("files", "made_from")}
    except (OSError, ValueError, KeyError, TypeError):
        return {"files": {}, "made_from": {}}


def published_facts(folders: Folders) -> dict[str, dict]:
    """The facts of the run of every stage whose manifest records it."""
    records = {path.stem: read_record(path) for path in folders.manifests()}
    return {name: record.facts() for name, record in records.items() if record and record.depends is not None}


def report_files(folders: Folders) -> list[Path]:
    """The files that build_report has written; of the pages in docs/ only the tables that it generates count."""
    files = [folders.reports / name for name in REPORT_FILES]
    if folders.reports == PROJECT_ROOT / "reports":
        files += [PROJECT_ROOT / page for page in GENERATED_PAGES]
    return [path for path in files if path.is_file()]


def report_sources(folders: Folders) -> dict[str, str]:
    """Hashes of what the report is made from: what notebooks and benchmarks published, and the code that shows it."""
    made = {path.relative_to(folders.root).as_posix(): path.read_bytes() for path in folders.manifests()}
    for name in REPORT_CODE:
        text = (PACKAGE / name).read_text(encoding="utf-8")
        made[f"fer_utils/{name}"] = (module_meaning(text) if name.endswith(".py") else text).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in made.items()}


# --- Check what is published ------------------------------------------------------------------------------------------


def find_problems(folders: Folders) -> list[str]:
    """In words, which published files do not come from a recorded run; empty when all do. Runs nothing."""
    if not folders.manifests():
        return [f"nothing is published in {folders.reports}"]
    problems: list[str] = []
    for manifest in folders.manifests():
        if record := read_record(manifest):
            problems += damaged(record.files, folders.root) + damaged_checkpoints(record.checkpoints, folders.root)
        else:
            problems.append(f"{manifest.stem} cannot be checked: {missing_record(manifest)}")
    unrecorded = [path.relative_to(folders.root).as_posix() for path in unrecorded_files(folders)]
    return problems + _report_problems(folders) + [f"{file} is not recorded by any run" for file in unrecorded]


def _report_problems(folders: Folders) -> list[str]:
    """In words, what is wrong with the report that was built from what is published."""
    record, repair = read_report_record(folders), "./run_all.sh --report builds it anew"
    if not record["files"]:
        return [f"the report cannot be checked: it was built before its files were recorded; {repair}"]
    older = record["made_from"] != report_sources(folders)
    return damaged(record["files"], folders.root) + (
        [f"the report was built from other results or by other code than those here; {repair}"] if older else []
    )


def unrecorded_files(folders: Folders) -> list[Path]:
    """Files beside the published ones that no manifest names, but for those of stages whose manifest has no record."""
    records = {path.stem: read_record(path) for path in folders.manifests()}
    recorded = {folders.root / file for record in records.values() if record for file in record.files}
    recorded |= {folders.report_record, *folders.manifests()}
    recorded |= {folders.reports / name for name in REPORT_FILES}
    numbers = tuple(f"{stage.split('_')[0]}_" for stage, record in records.items() if not record)
    there = [*folders.reports.rglob("*"), *folders.outputs.glob("*.ipynb")]
    hidden = [path for path in there if any(part.startswith(".") for part in path.relative_to(folders.root).parts)]
    return sorted(
        path for path in {*there} - recorded - {*hidden} if path.is_file() and not path.name.startswith(numbers)
    )
