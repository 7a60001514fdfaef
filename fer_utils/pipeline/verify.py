"""Check that every published file comes from a recorded run: ./run_all.sh --verify. Runs nothing, needs no data."""

from pathlib import Path

from fer_utils.pipeline.freshness import (
    describe_checkpoint_damage,
    describe_damage,
    explain_missing_record,
    read_record,
)
from fer_utils.pipeline.publish import Folders
from fer_utils.pipeline.report_files import REPORT_FILES, hash_sources, read_report_record


def find_problems(folders: Folders) -> list[str]:
    """Describe which published files do not come from a recorded run; empty when all do."""
    if not folders.manifests():
        return [f"nothing is published in {folders.reports}"]
    problems = [problem for manifest in folders.manifests() for problem in check_manifest(manifest, folders)]
    unrecorded_files = [path.relative_to(folders.root).as_posix() for path in find_unrecorded_files(folders)]
    return problems + check_report(folders) + [f"{file} is not recorded by any run" for file in unrecorded_files]


def check_manifest(manifest: Path, folders: Folders) -> list[str]:
    """Describe which files of one stage differ from its record."""
    record = read_record(manifest)
    if not record:
        return [f"{manifest.stem} cannot be checked: {explain_missing_record(manifest)}"]
    return describe_damage(record.files, folders.root) + describe_checkpoint_damage(record.checkpoints, folders.root)


def check_report(folders: Folders) -> list[str]:
    """Describe what is wrong with the report that was built from the published files."""
    record, repair = read_report_record(folders), "build it again with ./run_all.sh --report"
    if not record["files"]:
        return [f"the report cannot be checked: it was built before its files were recorded; {repair}"]
    problems = describe_damage(record["files"], folders.root)
    if record["made_from"] != hash_sources(folders):
        problems.append(f"the report was built from other results or by other code than the current ones; {repair}")
    return problems


def find_unrecorded_files(folders: Folders) -> list[Path]:
    """Return the files next to the published ones that no manifest lists.

    Hidden files are left out, and so are files of stages whose manifest has no record.
    """
    records = {path.stem: read_record(path) for path in folders.manifests()}
    listed = {folders.root / file for record in records.values() if record for file in record.files}
    listed |= {folders.report_record, *folders.manifests()}
    listed |= {folders.reports / name for name in REPORT_FILES}
    numbers = tuple(f"{stage.split('_')[0]}_" for stage, record in records.items() if not record)
    candidates = {*folders.reports.rglob("*"), *folders.outputs.glob("*.ipynb")} - listed
    return sorted(
        path
        for path in candidates
        if path.is_file() and not _is_hidden(path.relative_to(folders.root)) and not path.name.startswith(numbers)
    )


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
