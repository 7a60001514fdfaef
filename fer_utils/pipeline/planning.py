"""Plan a run: check the options, settle data, profile, device and parameters, and find why each stage has to run.

Everything that can be refused is refused here, before the first notebook starts. console.py prints the plan.
"""

import argparse
import fnmatch
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fer_utils.data.dataset import FER2013
from fer_utils.data.fer2013 import HOW_TO_GET, download_fer2013, find_data, load_data
from fer_utils.data.ferplus import find_ferplus
from fer_utils.data.rafdb import load_rafdb
from fer_utils.pipeline.freshness import (
    Record,
    describe_changes,
    describe_checkpoint_damage,
    describe_damage,
    explain_missing_record,
    gather_dependencies,
    hash_content,
    read_record,
    read_start_conditions,
)
from fer_utils.pipeline.notebooks import (
    CodeCell,
    UsageError,
    assign_overrides,
    check_name,
    check_value,
    read_code_cells,
    read_parameters,
)
from fer_utils.pipeline.publish import Folders, published_path
from fer_utils.pipeline.stages import Stage


@dataclass(frozen=True)
class Settings:
    """Everything about a run that is settled before the first notebook starts."""

    root: Path  # the project folder
    folders: Folders  # where this run writes
    stages: tuple[Stage, ...]  # the selected stages, in running order
    cells: Mapping[str, list[CodeCell]]  # stage -> its code cells
    parameters: Mapping[str, dict[str, object]]  # stage -> the values that replace its defaults
    inputs: Mapping[str, Folders]  # stage -> the folders with the results that it reads
    faces: FER2013  # the data
    source: str  # the data as notebooks get it: an absolute path, or "sample"
    rafdb: str  # the folder of RAF-DB for the stages that use it, or ""
    rafdb_fingerprint: str  # of the files in it, or ""
    profile: str  # one of stages.PROFILES
    device: str  # "cpu" or "cuda"
    force: bool  # whether up-to-date stages run as well
    accepted_profiles: tuple[str, ...] = ()  # other profiles whose published results count as up to date

    def depends(self, stage: Stage, profile: str | None = None) -> dict:
        """Return what the stage's result depends on now; profile: as if the run had this other profile."""
        parameters = self.parameters[stage.name]
        if profile and profile != self.profile:
            parameters = choose_parameters(stage, profile, read_parameters(self.cells[stage.name]))
        return gather_dependencies(
            cells=self.cells[stage.name],
            parameters=parameters,
            package=self.root / "fer_utils",
            data=self.describe_data(stage),
            profile=profile or self.profile,
            inputs=self._hash_inputs(stage),
        )

    def start_conditions(self, stage: Stage) -> dict:
        """Return what an unfinished run of the stage must have started with, so that this run can resume it."""
        return self.depends(stage) | {"device": self.device}

    def describe_data(self, stage: Stage) -> str:
        """Return form and fingerprint of the data that the stage reads, including RAF-DB and FER+ if it uses them."""
        rafdb = f", rafdb {self.rafdb_fingerprint}" if self.uses_rafdb(stage) else ""
        files = None if self.source == "sample" else find_ferplus(Path(self.source))
        uses_ferplus = files and any("find_ferplus" in cell.source for cell in self.cells[stage.name])
        ferplus = f", FER+ {' '.join(str(hash_content(path))[:8] for path in files if path)}" if uses_ferplus else ""
        return f"{self.faces.form} {self.faces.fingerprint}{rafdb}{ferplus}"

    def uses_rafdb(self, stage: Stage) -> bool:
        """Whether the stage runs on RAF-DB: --rafdb is set, and the notebook has a parameter for it."""
        return bool(self.rafdb) and "rafdb" in read_parameters(self.cells[stage.name])

    def _hash_inputs(self, stage: Stage) -> dict[str, str | None]:
        """Return the hashes of the published files that the stage reads.

        For a checkpoint that a clone lacks, this is the recorded hash. Manifests are left out: their results are also
        in tables and logits, and their times change with every run.
        """
        source, hashes = self.inputs[stage.name], {}
        for need in stage.needs:
            record = read_record(source.manifest(need))
            checkpoints = record.checkpoints if record else {}
            for files in needed_files(stage, need, source).values():
                hashes |= {file: hash_content(self.root / file) or checkpoints.get(file) for file in files}
        return {file: value for file, value in hashes.items() if "/manifests/" not in file}


# --- Settings ---------------------------------------------------------------------------------------------------------


def make_settings(options: argparse.Namespace, root: Path, stages: tuple[Stage, ...]) -> Settings:
    """Check the options, settle parameters, device and profile, and load the data.

    UsageError or DataError, with one plain sentence, for everything that can be refused before a notebook starts.
    """
    selection = select_stages(stages, options.only, options.start)
    cells = {stage.name: read_code_cells(root / "notebooks" / f"{stage.name}.ipynb") for stage in selection}
    defaults = {name: read_parameters(code_cells) for name, code_cells in cells.items()}
    overrides = assign_overrides(options.parameter, defaults)
    device = choose_device(options.device)
    data = choose_data(options)
    path = find_data(data)
    profile = choose_profile(options.profile, path, device)
    rafdb = choose_rafdb(options.rafdb or "", defaults)
    usual_folders = Folders.of(root, profile, custom=False)
    folders = Folders.of(root, profile, custom=bool(options.parameter))
    return Settings(
        root=root,
        folders=folders,
        stages=selection,
        cells=cells,
        parameters={
            stage.name: choose_parameters(stage, profile, defaults[stage.name]) | overrides[stage.name]
            for stage in selection
        },
        inputs={stage.name: choose_inputs(stage, selection, folders, usual_folders) for stage in selection},
        faces=load_data(path or data),
        source=str(path or "sample"),
        rafdb=rafdb,
        rafdb_fingerprint=load_rafdb(rafdb).fingerprint if rafdb else "",
        profile=profile,
        device=device,
        force=options.force,
        accepted_profiles=() if options.profile or options.parameter else choose_accepted_profiles(profile),
    )


def select_stages(stages: tuple[Stage, ...], only: str | None, start: str | None) -> tuple[Stage, ...]:
    """Return the stages that --only or --from selects, in running order; all of them without either option."""
    if only is not None:
        names = {find_stage(stages, name) for name in only.split(",")}
        return tuple(stage for stage in stages if stage.name in names)
    if start is not None:
        first = find_stage(stages, start)
        return stages[[stage.name for stage in stages].index(first) :]
    return stages


def find_stage(stages: tuple[Stage, ...], text: str) -> str:
    """Return the full name of a stage from its name or number: 04, 4 and 04_baseline_cnn are the same."""
    names = [stage.name for stage in stages]
    matches = [name for name in names if name == text.strip() or name.split("_")[0] == text.strip().zfill(2)]
    if not matches:
        raise UsageError(f"there is no stage {text!r}; the stages are {', '.join(names)}")
    return matches[0]


def choose_device(option: str) -> str:
    """Return "cpu" or "cuda" for the option --device; UsageError for "cuda" without a GPU."""
    has_gpu = option != "cpu" and cuda_is_available()
    if option == "cuda" and not has_gpu:
        raise UsageError("--device cuda: PyTorch finds no CUDA GPU here; leave out the option to use the CPU")
    return "cuda" if has_gpu else "cpu"


def cuda_is_available() -> bool:
    """Whether PyTorch can use a GPU. To ask PyTorch takes seconds, so a machine without NVIDIA driver is not asked."""
    if not (shutil.which("nvidia-smi") or Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()):  # dxg: WSL
        return False
    import torch

    return torch.cuda.is_available()


def choose_data(options: argparse.Namespace) -> str | Path:
    """Return what find_data has to look for. A relative path starts at the current folder."""
    if options.profile == "sample":
        if options.download or options.data not in ("auto", "sample"):
            raise UsageError("--profile sample always uses the embedded sample; leave out --data, or the profile")
        return "sample"
    if options.download and options.dry_run:
        raise UsageError("--dry-run does not download anything; leave out --download or --dry-run")
    if options.download:
        return download_fer2013()
    return options.data if options.data in ("auto", "sample") else Path(options.data).expanduser().absolute()


def choose_rafdb(path: str, defaults: Mapping[str, Mapping[str, object]]) -> str:
    """Return the absolute path of RAF-DB, or ""; UsageError when no notebook of the run can use it."""
    if path and not any("rafdb" in parameters for parameters in defaults.values()):
        raise UsageError("--rafdb: no notebook of this run uses RAF-DB; only 11_local_global does")
    return str(Path(path).expanduser().absolute()) if path else ""


def choose_profile(option: str | None, path: Path | None, device: str) -> str:
    """Return the profile of the option --profile, or the one that suits data and device.

    path: of FER2013, or None. UsageError when the profile needs FER2013: the sample never replaces real data.
    """
    if option in ("cpu", "full") and path is None:
        raise UsageError(f"--profile {option} needs FER2013, and none was found; {HOW_TO_GET}")
    if option or path is None:
        return option or "sample"
    return "full" if device == "cuda" else "cpu"


def choose_accepted_profiles(profile: str) -> tuple[str, ...]:
    """Return the other profiles whose results are kept when `profile` was chosen by default.

    A machine without a GPU keeps what a GPU published, because the shorter training of profile cpu is no improvement.
    """
    return ("full",) if profile == "cpu" else ()


def choose_parameters(stage: Stage, profile: str, defaults: Mapping[str, object]) -> dict[str, object]:
    """Return the stage's values for a profile; UsageError when its notebook does not declare one of them."""
    values = dict(stage.params.get(profile, {}))
    for name, value in values.items():
        check_name(name, defaults)
        check_value(name, value)
    return values


def choose_inputs(stage: Stage, selection: Iterable[Stage], folders: Folders, usual_folders: Folders) -> Folders:
    """Return the folders that a stage reads from: this run's, or the usual ones if this run makes no input of it."""
    return folders if any(other.name in stage.needs for other in selection) else usual_folders


# --- Files that stages read from each other ---------------------------------------------------------------------------


def needed_files(stage: Stage, need: str, source: Folders) -> dict[str, list[str]]:
    """Find the files of the stage `need` that `stage` reads.

    Returns pattern -> files relative to the project folder: those that exist, and those that its last run recorded.
    """
    record = read_record(source.manifest(need))
    recorded_files = record.all_files() if record else []
    matches = {}
    for pattern in stage.needs[need]:
        place = published_path(need, pattern, source)
        existing = (path.relative_to(source.root).as_posix() for path in place.parent.glob(place.name))
        recorded = fnmatch.filter(recorded_files, place.relative_to(source.root).as_posix())
        matches[pattern] = sorted({*existing, *recorded})
    return matches


def find_missing_inputs(settings: Settings, stage: Stage) -> list[tuple[str, Path]]:
    """Return the files that a stage reads and that do not exist, each with the stage that makes it."""
    source, missing = settings.inputs[stage.name], []
    for need in stage.needs:
        for pattern, files in needed_files(stage, need, source).items():
            paths = [source.root / file for file in files] or [published_path(need, pattern, source)]
            missing += [(need, path) for path in paths if not path.exists()]
    return missing


# --- Plan -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedStage:
    """One stage of the plan."""

    stage: Stage
    reasons: list[str]  # why it has to run; empty when it is up to date
    minutes: float  # expected time
    missing_files: tuple[Path, ...] = ()  # files that it made once and that a stage which has to run reads

    @property
    def name(self) -> str:
        """The name of the stage."""
        return self.stage.name


def make_plan(settings: Settings) -> list[PlannedStage]:
    """Find for every selected stage why it has to run; a stage also runs when a stage before it makes new files.

    UsageError when a stage has to run, a file that it reads is missing, and the stage that makes it is not selected.
    """
    stages = settings.stages
    reasons = {stage.name: find_reasons(settings, stage) for stage in stages}
    missing: dict[str, list[Path]] = {stage.name: [] for stage in stages}
    before = None
    while before != (before := [name for name, why in reasons.items() if why]):  # until no other stage has to run
        for stage in stages:
            makers = [need for need in stage.needs if reasons.get(need)]
            reasons[stage.name] = reasons[stage.name] or [f"needs {name}, which runs" for name in makers]
        for stage in reversed(stages):
            if reasons[stage.name]:
                _require_inputs(settings, stage, reasons, missing)
    return [
        PlannedStage(stage, reasons[stage.name], estimate_minutes(settings, stage), tuple(missing[stage.name]))
        for stage in stages
    ]


def _require_inputs(
    settings: Settings, stage: Stage, reasons: dict[str, list[str]], missing: dict[str, list[Path]]
) -> None:
    """Add reasons to the stages that make the missing inputs of a stage that has to run."""
    for need, path in find_missing_inputs(settings, stage):
        file = path.relative_to(settings.root)
        if need not in reasons:
            raise UsageError(f"{stage.name} needs {file} of {need}, which is missing; run that stage as well")
        if not reasons[need]:
            reasons[need] = [f"{stage.name} needs its {file}, which is missing"]
        if path not in missing[need]:
            missing[need].append(path)


def must_run(settings: Settings, item: PlannedStage) -> bool:
    """Whether a planned stage still has to run now that the stages before it have run."""
    return bool(find_reasons(settings, item.stage)) or not all(path.exists() for path in item.missing_files)


def find_reasons(settings: Settings, stage: Stage) -> list[str]:
    """Return why the stage has to run; empty when it is up to date."""
    if settings.force:
        return ["forced"]
    manifest, staging = settings.folders.manifest(stage.name), settings.folders.staging(stage.name)
    record, unfinished = read_record(manifest), read_start_conditions(staging)
    can_resume = unfinished == settings.start_conditions(stage)
    if record:
        reasons = _describe_staleness(settings, stage, record)
        if not reasons and can_resume:
            reasons = ["did not finish when it was forced"]
    else:
        reasons = [explain_missing_record(manifest)]
        if unfinished and reasons == ["first run"]:
            reasons = ["did not finish last time"]
    has_training = can_resume and (staging / "training").is_dir()
    return [*reasons, "resumes its training"] if reasons and has_training else reasons


def _describe_staleness(settings: Settings, stage: Stage, record: Record) -> list[str]:
    profile = record.depends["profile"]
    is_accepted = profile in settings.accepted_profiles and not describe_changes(
        record.depends, settings.depends(stage, profile)
    )
    return (
        ([] if is_accepted else describe_changes(record.depends, settings.depends(stage)))
        or describe_damage(record.files, settings.root)
        or describe_checkpoint_damage(record.checkpoints, settings.root)
    )


# --- Expected time ----------------------------------------------------------------------------------------------------


def estimate_minutes(settings: Settings, stage: Stage) -> float:
    """Return the minutes that the last run took on the same profile and device, or the declared ones without such."""
    record = read_record(settings.folders.manifest(stage.name))
    if record and (record.depends["profile"], record.run["device"]) == (settings.profile, settings.device):
        return record.run["seconds"] / 60
    return stage.minutes[settings.profile]


def measure_pace(plan: Iterable[PlannedStage], minutes: Mapping[str, float]) -> float:
    """Return how many times as long as expected the finished stages took. minutes: finished stage -> measured time.

    Before the first stage is finished this is 1.
    """
    finished = [item for item in plan if item.name in minutes]
    expected = sum(item.minutes for item in finished)
    return sum(minutes[item.name] for item in finished) / expected if expected else 1.0


def estimate_chains(plan: Sequence[PlannedStage]) -> dict[str, float]:
    """Return stage -> minutes of the longest chain of stages that starts with it, each waiting for the one before."""
    minutes: dict[str, float] = {}
    for item in reversed(plan):
        after = [minutes[later.name] for later in plan if item.name in later.stage.needs]
        minutes[item.name] = item.minutes + max(after, default=0.0)
    return minutes


def find_longest_chain(plan: Sequence[PlannedStage]) -> list[str]:
    """Return the stages of the longest chain, in order. The run takes at least this long with any number of jobs."""
    minutes, chain = estimate_chains(plan), []
    candidates = list(plan)
    while candidates:
        chain.append(max((item.name for item in candidates), key=minutes.get))
        candidates = [item for item in plan if chain[-1] in item.stage.needs]
    return chain


def estimate_total_minutes(plan: Sequence[PlannedStage], jobs: int) -> float:
    """Return the minutes until all stages are done, with `jobs` of them at once and the longest chain first."""
    priority, now = estimate_chains(plan), 0.0
    waiting, running = list(plan), {}  # running: stage -> minute in which it ends
    while waiting or running:
        unfinished = {item.name for item in waiting} | running.keys()
        ready = [item for item in waiting if not item.stage.needs.keys() & unfinished]
        ready.sort(key=lambda item: -priority[item.name])
        for item in ready[: jobs - len(running)]:
            running[item.name] = now + item.minutes
            waiting.remove(item)
        first = min(running, key=running.get)
        now = running.pop(first)
    return now
