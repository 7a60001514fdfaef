"""Publish the files of a finished stage: copy them to reports/ and outputs/, one at a time, never half a file."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fer_utils.paths import atomic_write
from fer_utils.pipeline.freshness import hash_content, write_manifest
from fer_utils.pipeline.notebooks import UsageError
from fer_utils.pipeline.openings import FILE as OPENINGS
from fer_utils.pipeline.openings import append_openings

FREE_GIGABYTES = 4.0  # notebook 05 keeps about 2.5 GB of checkpoints while it trains in profile cpu
SAMPLE_GIGABYTES = 1.0  # the whole course on the sample keeps 0.4 GB
REPORT_GIGABYTES = 0.1  # all of reports/, if it is on a file system of its own
REPORT_PARTS = ("tables", "figures", "predictions")
DERIVED = ("landmarks.npz",)  # checkpoints that are small enough for git, so that a clone has them
DERIVED_MEGABYTES = 2.0  # the largest that such a file may be


@dataclass(frozen=True)
class Folders:
    """The folders of one kind of run, all below the project folder."""

    root: Path  # the project folder
    work: Path  # unfinished stages and the log
    outputs: Path  # executed notebooks and checkpoints
    reports: Path  # tables, figures, predictions, small derived inputs, manifests and the report

    @classmethod
    def of(cls, root: Path, profile: str, custom: bool) -> "Folders":
        """Return the folders for a profile; custom: whether parameters were set with -p.

        Sample runs and custom runs stay below outputs/ and never touch reports/.
        """
        outputs = root / "outputs"
        kind = "custom" if custom else profile
        if kind in ("custom", "sample"):
            return cls(root, outputs / "work" / kind, outputs / kind, outputs / kind / "reports")
        return cls(root, outputs / "work" / kind, outputs, root / "reports")

    def staging(self, stage: str) -> Path:
        """Return the folder that a stage writes to until it is complete."""
        return self.work / stage

    def manifest(self, stage: str) -> Path:
        """Return the path of a published stage's manifest: what it made, and the record of its run."""
        return self.reports / "manifests" / f"{stage}.json"

    @property
    def report_record(self) -> Path:
        """The path of the report's own record."""
        return self.reports / "report.json"

    def manifests(self) -> list[Path]:
        """Return the manifests of everything that is published."""
        return sorted((self.reports / "manifests").glob("*.json"))


def check_writable(folders: Folders, profile: str) -> None:
    """UsageError when a folder of the run cannot be written, or when the disk has no room for a run in this profile."""
    targets = [folders.reports / part for part in (*REPORT_PARTS, "derived", "manifests")]
    for folder in (folders.work, folders.outputs, folders.reports, *targets):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UsageError(f"cannot write to {folder} ({error.strerror}); make it writable and run again") from None
    needed = SAMPLE_GIGABYTES if profile == "sample" else FREE_GIGABYTES
    # Each of these folders may be a file system of its own.
    for folder, gigabytes in ((folders.work, needed), (folders.outputs, needed), (folders.reports, REPORT_GIGABYTES)):
        free = shutil.disk_usage(folder).free / 1e9
        if free < gigabytes:
            raise UsageError(
                f"only {free:.1f} GB of disk space are free at {folder}; a run needs {gigabytes:g} GB there, so free"
                " some space and run again"
            )


def remove_leftovers(folders: Folders) -> None:
    """Remove half-written files of a run that was killed while it published. Call it before any stage runs."""
    parts = (folders.reports / part for part in (*REPORT_PARTS, "derived", "manifests"))
    for folder in (folders.outputs, folders.reports, *parts, *(folders.outputs / "checkpoints").glob("*")):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()


def publish(
    stage: str, folders: Folders, earlier: Iterable[str], depends: Mapping | None = None, run: Mapping | None = None
) -> None:
    """Copy the files of a finished stage to where they are published, and remove those that only its last run made.

    earlier: the files of its last run, relative to the project folder. Files in `reports` that start with the stage's
    number are removed as well. depends, run: for the record in its manifest. The manifest is written last, so the stage
    is not up to date until everything else is published.
    """
    targets, hashes = _map_to_targets(stage, folders), {}
    for source, target in targets.items():
        atomic_write(target, source.read_bytes())
        hashes[target.relative_to(folders.root).as_posix()] = hash_content(target)
    _remove_old_files(stage, folders, {*earlier} - hashes.keys(), set(targets.values()))
    _publish_manifest(stage, folders, hashes, depends, run or {})


def published_path(stage: str, file: str, folders: Folders) -> Path:
    """Return where a stage's file is published. file: relative to the stage's folder `out`."""
    part, _, name = file.partition("/")
    if part == "checkpoints" and name in DERIVED:
        return folders.reports / "derived" / name
    places = {part: folders.reports / part for part in REPORT_PARTS}
    places["checkpoints"] = folders.outputs / "checkpoints" / stage
    return places[part] / name if name else folders.manifest(stage)


def _map_to_targets(stage: str, folders: Folders) -> dict[Path, Path]:
    """Map every file that a stage made to where it is published, without the manifest, which comes last."""
    staging = folders.staging(stage)
    paths = [path for part in (*REPORT_PARTS, "checkpoints") for path in sorted((staging / part).rglob("*"))]
    files = [path for path in paths if path.is_file() and not path.name.startswith(".")]
    targets = {path: published_path(stage, path.relative_to(staging).as_posix(), folders) for path in files}
    notebook = staging / "notebook.ipynb"
    return targets | ({notebook: folders.outputs / f"{stage}.ipynb"} if notebook.is_file() else {})


def _remove_old_files(stage: str, folders: Folders, earlier: set[str], new: set[Path]) -> None:
    """Remove what only earlier runs of a stage made, including files that came with a clone and have no record."""
    of_stage = f"{stage.split('_')[0]}_*"
    existing = [path for part in REPORT_PARTS for path in (folders.reports / part).glob(of_stage)]
    for path in {*existing, *(folders.root / file for file in earlier)} - new - {folders.manifest(stage)}:
        path.unlink(missing_ok=True)


def _publish_manifest(
    stage: str, folders: Folders, hashes: dict[str, str], depends: Mapping | None, run: Mapping
) -> None:
    """Write the manifest: the notebook's own part, the record with the hashes of all files, and the run."""
    path = folders.staging(stage) / "manifest.json"
    notebook_part = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    notebook_part = {"notebook": stage, "artifacts": [], "summary": [], "claims": []} | notebook_part
    checkpoint_folder = (folders.outputs / "checkpoints").relative_to(folders.root).as_posix() + "/"
    checkpoints = {file: value for file, value in hashes.items() if file.startswith(checkpoint_folder)}
    files = {file: value for file, value in hashes.items() if file not in checkpoints}
    record = {"depends": depends, "files": files, "checkpoints": checkpoints}
    write_manifest(folders.manifest(stage), notebook_part, record, run)
    append_openings(folders.reports / OPENINGS, notebook_part["summary"], run)
