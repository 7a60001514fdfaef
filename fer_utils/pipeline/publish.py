"""Where a run puts its files, and how they get there: file by file, each either old or new, never half."""

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fer_utils.data import atomic_write
from fer_utils.pipeline.freshness import content_hash
from fer_utils.pipeline.notebooks import UsageError

FREE_GIGABYTES = 4.0  # notebook 05 keeps about 2.5 GB of checkpoints while it trains in profile cpu
REPORT_PARTS = ("tables", "figures", "predictions")


@dataclass(frozen=True)
class Folders:
    """The folders of one kind of run, all below the project's root.

    work: unfinished stages and the log. outputs: executed notebooks, checkpoints and stamps. reports: the report.
    """

    root: Path
    work: Path
    outputs: Path
    reports: Path

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

    def stamp(self, stage: str) -> Path:
        """Where the stamp of a published stage lies; stamps describe what `outputs` and `reports` hold now."""
        return self.outputs / "stamps" / f"{stage}.json"


def check_writable(folders: Folders) -> None:
    """UsageError when a folder of the run cannot be written, or when the disk is nearly full."""
    targets = [folders.reports / part for part in (*REPORT_PARTS, "manifests")]
    for folder in (folders.work, folders.outputs, folders.outputs / "stamps", folders.reports, *targets):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UsageError(f"cannot write to {folder} ({error.strerror}); make it writable and run again") from None
    free = shutil.disk_usage(folders.root).free / 1e9
    if free < FREE_GIGABYTES:
        raise UsageError(f"only {free:.1f} GB are free at {folders.root}; make room, a run needs {FREE_GIGABYTES:g} GB")


def publish(stage: str, folders: Folders, earlier: Iterable[str]) -> dict[str, str]:
    """Copy what a finished stage made to where it is published, and remove what only its earlier run made.

    earlier: the files that the stage's last stamp names; what bears the stage's number in `reports` goes, too.
    Returns published path below root -> content hash.
    """
    targets = _targets(stage, folders)
    for folder in {target.parent for target in targets.values()}:
        for leftover in folder.glob(".*.tmp"):  # of a run that was killed while publishing
            leftover.unlink()
    outputs = {}
    for source, target in targets.items():
        atomic_write(target, source.read_bytes())
        outputs[target.relative_to(folders.root).as_posix()] = content_hash(target)
    of_stage = f"{stage.split('_')[0]}_*"  # also what a clone brought along, of which no stamp knows
    there = (path for part in REPORT_PARTS for path in (folders.reports / part).glob(of_stage))
    for file in {*earlier, *(path.relative_to(folders.root).as_posix() for path in there)} - outputs.keys():
        (folders.root / file).unlink(missing_ok=True)
    return outputs


def published_path(stage: str, file: str, folders: Folders) -> Path:
    """Where a file is published that a stage wrote, named relative to its folder `out`."""
    part, _, name = file.partition("/")
    places = {part: folders.reports / part for part in REPORT_PARTS}
    places["checkpoints"] = folders.outputs / "checkpoints" / stage
    return places[part] / name if name else folders.reports / "manifests" / f"{stage}.json"


def _targets(stage: str, folders: Folders) -> dict[Path, Path]:
    """Every file that a stage made -> where it is published."""
    staging = folders.staging(stage)
    made = [path for part in (*REPORT_PARTS, "checkpoints") for path in sorted((staging / part).rglob("*"))]
    made = [path for path in [*made, staging / "manifest.json"] if path.is_file() and not path.name.startswith(".")]
    targets = {path: published_path(stage, path.relative_to(staging).as_posix(), folders) for path in made}
    notebook = staging / "notebook.ipynb"
    return targets | ({notebook: folders.outputs / f"{stage}.ipynb"} if notebook.is_file() else {})
