"""Where a run puts its files, and how they get there: file by file, each either old or new, never half."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fer_utils.paths import atomic_write
from fer_utils.pipeline.freshness import content_hash, write_manifest
from fer_utils.pipeline.notebooks import UsageError
from fer_utils.pipeline.openings import FILE as OPENINGS
from fer_utils.pipeline.openings import append_openings

FREE_GIGABYTES = 4.0  # notebook 05 keeps about 2.5 GB of checkpoints while it trains in profile cpu
REPORT_PARTS = ("tables", "figures", "predictions")
DERIVED = ("landmarks.npz",)  # checkpoints so small that git keeps them, so that a clone has them
DERIVED_MEGABYTES = 2.0  # none may be larger


@dataclass(frozen=True)
class Folders:
    """The folders of one kind of run, all below the project's root."""

    root: Path
    work: Path  # unfinished stages and the log
    outputs: Path  # executed notebooks and checkpoints
    reports: Path  # tables, figures, predictions, small derived inputs, manifests and the report

    @classmethod
    def of(cls, root: Path, profile: str, custom: bool) -> "Folders":
        """Runs on the sample or with parameters set by hand (custom) stay below outputs/ and never touch reports/."""
        outputs = root / "outputs"
        kind = "custom" if custom else profile
        if kind in ("custom", "sample"):
            return cls(root, outputs / "work" / kind, outputs / kind, outputs / kind / "reports")
        return cls(root, outputs / "work" / kind, outputs, root / "reports")

    def staging(self, stage: str) -> Path:
        """Where a stage works until everything it makes is complete."""
        return self.work / stage

    def manifest(self, stage: str) -> Path:
        """Where the manifest of a published stage lies: what it made, and the record of its run."""
        return self.reports / "manifests" / f"{stage}.json"

    @property
    def report_record(self) -> Path:
        """Where the record of the report itself lies."""
        return self.reports / "report.json"

    def manifests(self) -> list[Path]:
        """The manifests of all that is published."""
        return sorted((self.reports / "manifests").glob("*.json"))


def check_writable(folders: Folders) -> None:
    """UsageError when a folder of the run cannot be written, or when the disk is nearly full."""
    targets = [folders.reports / part for part in (*REPORT_PARTS, "derived", "manifests")]
    for folder in (folders.work, folders.outputs, folders.reports, *targets):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UsageError(f"cannot write to {folder} ({error.strerror}); make it writable and run again") from None
    free = shutil.disk_usage(folders.root).free / 1e9
    if free < FREE_GIGABYTES:
        raise UsageError(f"only {free:.1f} GB are free at {folders.root}; make room, a run needs {FREE_GIGABYTES:g} GB")


def remove_leftovers(folders: Folders) -> None:
    """Remove half-written files of a run that was killed while publishing; only while no stage publishes."""
    parts = (folders.reports / part for part in (*REPORT_PARTS, "derived", "manifests"))
    for folder in (folders.outputs, folders.reports, *parts, *(folders.outputs / "checkpoints").glob("*")):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()


def publish(
    stage: str, folders: Folders, earlier: Iterable[str], depends: Mapping | None = None, run: Mapping | None = None
) -> None:
    """Copy what a finished stage made to where it is published, and remove what only its earlier run made.

    earlier: the files of its earlier run, relative to the root; what bears the stage's number in `reports` goes, too.
    depends, run: for the record in its manifest. This is written last: until then the stage is not up to date.
    """
    targets, hashes = _targets(stage, folders), {}
    for source, target in targets.items():
        atomic_write(target, source.read_bytes())
        hashes[target.relative_to(folders.root).as_posix()] = content_hash(target)
    _remove_old(stage, folders, {*earlier} - hashes.keys(), set(targets.values()))
    _publish_manifest(stage, folders, hashes, depends, run or {})


def _remove_old(stage: str, folders: Folders, earlier: set[str], made: set[Path]) -> None:
    """Remove what only earlier runs of a stage made, also files that came with a clone and that nothing recorded."""
    of_stage = f"{stage.split('_')[0]}_*"
    there = [path for part in REPORT_PARTS for path in (folders.reports / part).glob(of_stage)]
    for path in {*there, *(folders.root / file for file in earlier)} - made - {folders.manifest(stage)}:
        path.unlink(missing_ok=True)


def _publish_manifest(
    stage: str, folders: Folders, hashes: dict[str, str], depends: Mapping | None, run: Mapping
) -> None:
    """Write the manifest: what the notebook wrote, the record with the hashes of all files, and the run."""
    staged = folders.staging(stage) / "manifest.json"
    written = json.loads(staged.read_text(encoding="utf-8")) if staged.is_file() else {}
    written = {"notebook": stage, "artifacts": [], "summary": [], "claims": []} | written
    checkpoints = (folders.outputs / "checkpoints").relative_to(folders.root).as_posix() + "/"
    ignored = {file: value for file, value in hashes.items() if file.startswith(checkpoints)}
    files = {file: value for file, value in hashes.items() if file not in ignored}
    record = {"depends": depends, "files": files, "checkpoints": ignored}
    write_manifest(folders.manifest(stage), written, record, run)
    append_openings(folders.reports / OPENINGS, written["summary"], run)


def published_path(stage: str, file: str, folders: Folders) -> Path:
    """Where a file is published that a stage wrote, named relative to its folder `out`."""
    part, _, name = file.partition("/")
    if part == "checkpoints" and name in DERIVED:
        return folders.reports / "derived" / name
    places = {part: folders.reports / part for part in REPORT_PARTS}
    places["checkpoints"] = folders.outputs / "checkpoints" / stage
    return places[part] / name if name else folders.manifest(stage)


def _targets(stage: str, folders: Folders) -> dict[Path, Path]:
    """Every file that a stage made -> where it is published; its manifest comes last and is not among them."""
    staging = folders.staging(stage)
    made = [path for part in (*REPORT_PARTS, "checkpoints") for path in sorted((staging / part).rglob("*"))]
    made = [path for path in made if path.is_file() and not path.name.startswith(".")]
    targets = {path: published_path(stage, path.relative_to(staging).as_posix(), folders) for path in made}
    notebook = staging / "notebook.ipynb"
    return targets | ({notebook: folders.outputs / f"{stage}.ipynb"} if notebook.is_file() else {})
