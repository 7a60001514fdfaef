"""What will run, on what, and why: settled and checked before the first notebook starts."""

import argparse
import fnmatch
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from fer_utils.data.dataset import FER2013
from fer_utils.data.fer2013 import HOW_TO_GET, download_fer2013, find_data, load_data
from fer_utils.data.ferplus import find_ferplus
from fer_utils.data.rafdb import load_rafdb
from fer_utils.pipeline.freshness import (
    Record,
    content_hash,
    damaged,
    damaged_checkpoints,
    dependencies,
    differences,
    missing_record,
    read_begun,
    read_record,
)
from fer_utils.pipeline.notebooks import (
    CodeCell,
    UsageError,
    assign_overrides,
    check_known,
    check_value,
    declared_parameters,
    read_code_cells,
)
from fer_utils.pipeline.publish import Folders, published_path
from fer_utils.pipeline.stages import PROFILES, Stage


@dataclass(frozen=True)
class Run:
    """Everything that is settled before the first notebook starts."""

    root: Path
    folders: Folders
    stages: tuple[Stage, ...]  # those selected
    cells: Mapping[str, list[CodeCell]]  # code cells per stage
    parameters: Mapping[str, dict[str, object]]  # per stage, the values that replace its defaults
    inputs: Mapping[str, Folders]  # per stage, the folders with the results that it reads
    faces: FER2013
    source: str  # the data as notebooks are told: an absolute path or "sample"
    rafdb: str  # the folder of RAF-DB, for the stages that know it, or ""
    rafdb_fingerprint: str  # of what is in it
    profile: str
    device: str
    force: bool
    stands: tuple[str, ...] = ()  # other profiles whose published results need not be replaced by this run's

    def depends(self, stage: Stage, profile: str | None = None) -> dict:
        """What the stage's result depends on, as things are now; in another profile, if one is given."""
        parameters = self.parameters[stage.name]
        if profile and profile != self.profile:
            parameters = stage_parameters(stage, profile, declared_parameters(self.cells[stage.name]))
        return dependencies(
            cells=self.cells[stage.name],
            parameters=parameters,
            package=self.root / "fer_utils",
            data=self.data_of(stage),
            profile=profile or self.profile,
            inputs=self._input_hashes(stage),
        )

    def begins(self, stage: Stage) -> dict:
        """What a stopped run of the stage must have begun with, for this run to go on with its training."""
        return self.depends(stage) | {"device": self.device}

    def data_of(self, stage: Stage) -> str:
        """Form and fingerprint of the data that the stage sees, with those of RAF-DB and FER+ if it uses them."""
        rafdb = f", rafdb {self.rafdb_fingerprint}" if self.on_rafdb(stage) else ""
        found = None if self.source == "sample" else find_ferplus(Path(self.source))
        votes = found and any("find_ferplus" in cell.source for cell in self.cells[stage.name])
        ferplus = f", FER+ {' '.join(str(content_hash(path))[:8] for path in found if path)}" if votes else ""
        return f"{self.faces.form} {self.faces.fingerprint}{rafdb}{ferplus}"

    def on_rafdb(self, stage: Stage) -> bool:
        """Whether the stage runs on RAF-DB: when it was given, and the notebook has a parameter for it."""
        return bool(self.rafdb) and "rafdb" in declared_parameters(self.cells[stage.name])

    def _input_hashes(self, stage: Stage) -> dict[str, str | None]:
        """Of the published files that decide its result; of a checkpoint that a clone lacks, the recorded hash.

        Without manifests: they repeat what tables and logits say, and hold times.
        """
        source, hashes = self.inputs[stage.name], {}
        for need in stage.needs:
            record = read_record(source.manifest(need))
            recorded = record.checkpoints if record else {}
            for files in needed_files(stage, need, source).values():
                hashes |= {file: content_hash(self.root / file) or recorded.get(file) for file in files}
        return {file: value for file, value in hashes.items() if "/manifests/" not in file}


# --- Settle -----------------------------------------------------------------------------------------------------------


def prepare(options: argparse.Namespace, root: Path, stages: tuple[Stage, ...]) -> Run:
    """Check the options, settle parameters, device and profile, and load the data.

    UsageError or DataError, one plain sentence, for everything that can be refused before a notebook starts.
    """
    selected = select_stages(stages, options.only, options.start)
    cells = {stage.name: read_code_cells(root / "notebooks" / f"{stage.name}.ipynb") for stage in selected}
    declared = {name: declared_parameters(codes) for name, codes in cells.items()}
    overrides = assign_overrides(options.parameter, declared)
    device = choose_device(options.device)
    wanted = wanted_data(options)
    path = find_data(wanted)
    profile = choose_profile(options.profile, path, device)
    rafdb = wanted_rafdb(options.rafdb, declared)
    parameters = {
        stage.name: stage_parameters(stage, profile, declared[stage.name]) | overrides[stage.name] for stage in selected
    }
    usual = Folders.of(root, profile, custom=False)
    folders = Folders.of(root, profile, custom=bool(options.parameter))
    return Run(
        root=root,
        folders=folders,
        stages=selected,
        cells=cells,
        parameters=parameters,
        inputs={stage.name: choose_inputs(stage, selected, folders, usual) for stage in selected},
        faces=load_data(path or wanted),
        source=str(path or "sample"),
        rafdb=rafdb,
        rafdb_fingerprint=load_rafdb(rafdb).fingerprint if rafdb else "",
        profile=profile,
        device=device,
        force=options.force,
        stands=() if options.profile or options.parameter else standing_profiles(profile),
    )


def select_stages(stages: tuple[Stage, ...], only: str | None, start: str | None) -> tuple[Stage, ...]:
    """The stages that --only or --from name, in running order; all of them without either."""
    if only is not None:
        wanted = {find_stage(stages, name) for name in only.split(",")}
        return tuple(stage for stage in stages if stage.name in wanted)
    if start is not None:
        first = find_stage(stages, start)
        return stages[[stage.name for stage in stages].index(first) :]
    return stages


def find_stage(stages: tuple[Stage, ...], name: str) -> str:
    """The full name of the stage called `name` or by its number: 04, 4 and 04_baseline_cnn are the same."""
    names = [stage.name for stage in stages]
    found = [full for full in names if full == name.strip() or full.split("_")[0] == name.strip().zfill(2)]
    if not found:
        raise UsageError(f"there is no stage {name!r}; there are {', '.join(names)}")
    return found[0]


def choose_device(wanted: str) -> str:
    """The device to use, "cpu" or "cuda"; UsageError when CUDA is asked for but absent."""
    found = wanted != "cpu" and cuda_is_available()
    if wanted == "cuda" and not found:
        raise UsageError("--device cuda: PyTorch finds no CUDA GPU here; leave the option out to use the CPU")
    return "cuda" if found else "cpu"


def cuda_is_available() -> bool:
    """Whether PyTorch can use a GPU; it is only asked (which takes seconds) where there is an NVIDIA driver at all."""
    if not (shutil.which("nvidia-smi") or Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()):  # WSL: dxg
        return False
    import torch

    return torch.cuda.is_available()


def wanted_data(options: argparse.Namespace) -> str | Path:
    """What `find_data` shall look for; a relative path is taken from where the user stands."""
    if options.profile == "sample":
        if options.download or options.data not in ("auto", "sample"):
            raise UsageError("--profile sample always uses the embedded sample; leave out --data, or the profile")
        return "sample"
    if options.download and options.dry_run:
        raise UsageError("--dry-run starts nothing, not even a download; leave out one of the two")
    if options.download:
        return download_fer2013()
    return options.data if options.data in ("auto", "sample") else Path(options.data).expanduser().absolute()


def wanted_rafdb(path: str, declared: Mapping[str, Mapping[str, object]]) -> str:
    """The absolute path of RAF-DB, or ""; UsageError when no notebook of the run can use it."""
    if path and not any("rafdb" in names for names in declared.values()):
        raise UsageError("--rafdb: no notebook of this run uses RAF-DB; 11_local_global does")
    return str(Path(path).expanduser().absolute()) if path else ""


def choose_profile(asked: str | None, path: Path | None, device: str) -> str:
    """The profile asked for, else the one that suits data and device; the sample never stands in for real data."""
    if asked in ("cpu", "full") and path is None:
        raise UsageError(f"--profile {asked} needs FER2013, and none was found; {HOW_TO_GET}")
    if asked or path is None:
        return asked or "sample"
    return "full" if device == "cuda" else "cpu"


def standing_profiles(profile: str) -> tuple[str, ...]:
    """Whose results stand when a profile was not asked for but chosen: what a GPU published, where there is none."""
    return ("full",) if profile == "cpu" else ()


def stage_parameters(stage: Stage, profile: str, declared: Mapping[str, object]) -> dict[str, object]:
    """The stage's values for this profile; UsageError when its notebook does not declare one of them."""
    values = dict(stage.params.get(profile, {}))
    for name, value in values.items():
        check_known(name, declared)
        check_value(name, value)
    return values


def choose_inputs(stage: Stage, selected: Iterable[Stage], folders: Folders, usual: Folders) -> Folders:
    """Where the results lie that a stage reads: this run's folders, or the usual ones if it makes none of them."""
    return folders if any(other.name in stage.needs for other in selected) else usual


def needed_files(stage: Stage, need: str, source: Folders) -> dict[str, list[str]]:
    """What a stage reads of another's results: pattern -> files below the root, those there and those it published."""
    record = read_record(source.manifest(need))
    published = record.all_files() if record else []
    found = {}
    for pattern in stage.needs[need]:
        place = published_path(need, pattern, source)
        there = (path.relative_to(source.root).as_posix() for path in place.parent.glob(place.name))
        made = fnmatch.filter(published, place.relative_to(source.root).as_posix())
        found[pattern] = sorted({*there, *made})
    return found


def missing_inputs(run: Run, stage: Stage) -> list[tuple[str, Path]]:
    """What a stage would read and cannot, because it is not there: the stage that makes it, and the file."""
    source, missing = run.inputs[stage.name], []
    for need in stage.needs:
        for pattern, files in needed_files(stage, need, source).items():
            paths = [source.root / file for file in files] or [published_path(need, pattern, source)]
            missing += [(need, path) for path in paths if not path.exists()]
    return missing


# --- Plan -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """A stage of the plan."""

    stage: Stage
    reasons: list[str]  # why it has to run; none: it is up to date
    minutes: float  # how long it is expected to take
    demanded: tuple[Path, ...] = ()  # missing files that it made once, and that a stage which has to run reads


def make_plan(run: Run) -> list[Planned]:
    """For every selected stage why it has to run, counting on new files from the stages before it.

    UsageError when a stage has to run, a file that it reads is missing, and the stage that makes it is not selected.
    """
    reasons = {stage.name: why_run(run, stage) for stage in run.stages}
    demanded: dict[str, list[Path]] = {stage.name: [] for stage in run.stages}
    before = None
    while before != (before := [name for name, why in reasons.items() if why]):
        for stage in run.stages:
            renewed = [need for need in stage.needs if reasons.get(need)]
            reasons[stage.name] = reasons[stage.name] or [f"needs {name}, which runs" for name in renewed]
        for stage in reversed(run.stages):
            if reasons[stage.name]:
                _demand_inputs(run, stage, reasons, demanded)
    return [
        Planned(stage, reasons[stage.name], expected_minutes(run, stage), tuple(demanded[stage.name]))
        for stage in run.stages
    ]


def _demand_inputs(run: Run, stage: Stage, reasons: dict[str, list[str]], demanded: dict[str, list[Path]]) -> None:
    """Let the stages run whose missing files a stage reads that has to run."""
    for need, path in missing_inputs(run, stage):
        file = path.relative_to(run.root)
        if need not in reasons:
            raise UsageError(f"{stage.name} needs {file} of {need}, which is missing; run that stage as well")
        if not reasons[need]:
            reasons[need] = [f"{stage.name} needs its {file}, which is missing"]
        if path not in demanded[need]:
            demanded[need].append(path)


def must_run(run: Run, planned: Planned) -> bool:
    """Whether a planned stage still has to run, now that those before it have run."""
    return bool(why_run(run, planned.stage)) or not all(path.exists() for path in planned.demanded)


def why_run(run: Run, stage: Stage) -> list[str]:
    """Why the stage has to run, in words; empty when it is up to date."""
    if run.force:
        return ["forced"]
    manifest, staging = run.folders.manifest(stage.name), run.folders.staging(stage.name)
    record, begun = read_record(manifest), read_begun(staging)
    goes_on = begun == run.begins(stage)
    if record:
        reasons = _why_stale(run, stage, record)
        if not reasons and goes_on:
            reasons = ["did not finish when it was forced"]
    else:
        reasons = [missing_record(manifest)]
        if begun and reasons == ["first run"]:
            reasons = ["did not finish last time"]
    resumes = goes_on and (staging / "training").is_dir()
    return [*reasons, "resumes its training"] if reasons and resumes else reasons


def _why_stale(run: Run, stage: Stage, record: Record) -> list[str]:
    profile = record.depends["profile"]
    as_recorded = profile in run.stands and not differences(record.depends, run.depends(stage, profile))
    return (
        ([] if as_recorded else differences(record.depends, run.depends(stage)))
        or damaged(record.files, run.root)
        or damaged_checkpoints(record.checkpoints, run.root)
    )


def expected_minutes(run: Run, stage: Stage) -> float:
    """Minutes that the stage will take: as measured last time on the same profile and device, else as declared."""
    record = read_record(run.folders.manifest(stage.name))
    if record and (record.depends["profile"], record.run["device"]) == (run.profile, run.device):
        return record.run["seconds"] / 60
    return stage.minutes[run.profile]


def describe_stages(stages: Iterable[Stage]) -> str:
    """The list of stages, with what they need and about how long they take."""
    lines = [f"{'stage':<26}" + "".join(f"{profile:>12}" for profile in PROFILES) + "   needs"]
    for stage in stages:
        times = "".join(f"{duration(stage.minutes[profile]):>12}" for profile in PROFILES)
        lines.append(f"{stage.name:<26}{times}   {', '.join(stage.needs) or 'the data only'}")
    return "\n".join(lines)


def describe_plan(run: Run, plan: Iterable[Planned], jobs: int = 1) -> str:
    """The plan in words: data, profile, device, what runs and why, and how long it takes, `jobs` stages at once."""
    data = "embedded sample" if run.source == "sample" else Path(run.source).name
    lines = [f"Data: {data}. Profile: {run.profile}. Device: {run.device}. Report: {run.folders.reports}"]
    if run.rafdb:
        lines.append(f"RAF-DB for: {', '.join(stage.name for stage in run.stages if run.on_rafdb(stage))}")
    names = {stage.name for stage in run.stages}
    taken = dict.fromkeys(need for stage in run.stages for need in stage.needs if need not in names)
    if taken:
        lines.append(f"Taken as published: results of {', '.join(taken)}")
    for planned in plan:
        runs = f"run         {planned.stage.name} ({duration(planned.minutes)}): {'; '.join(planned.reasons)}"
        lines.append(f"  {runs}" if planned.reasons else f"  up to date  {planned.stage.name}")
    return "\n".join([*lines, describe_time([planned for planned in plan if planned.reasons], jobs)])


def describe_time(waiting: Sequence[Planned], jobs: int) -> str:
    """How long the stages take, and which of them nothing can shorten when several run at once."""
    if not waiting:
        return "Nothing to do: all is up to date."
    minutes = expected_length(waiting, jobs)
    end = f"{datetime.now() + timedelta(minutes=minutes):%H:%M}"
    if jobs == 1:
        return f"Expected time: {duration(minutes)}, until {end}."
    chain = " -> ".join(name.split("_")[0] for name in longest_chain(waiting))
    length = duration(max(chain_lengths(waiting).values()))
    return f"Expected time, {jobs} at once: {duration(minutes)}, until {end}; longest chain: {chain} ({length})."


def chain_lengths(plan: Sequence[Planned]) -> dict[str, float]:
    """Minutes from the start of each stage to the end of the longest chain of stages that wait for one another."""
    lengths: dict[str, float] = {}
    for planned in reversed(plan):
        name = planned.stage.name
        after = [lengths[later.stage.name] for later in plan if name in later.stage.needs]
        lengths[name] = planned.minutes + max(after, default=0.0)
    return lengths


def longest_chain(plan: Sequence[Planned]) -> list[str]:
    """The stages of the longest chain, in order: no number of jobs makes the run shorter than they take."""
    lengths, chain = chain_lengths(plan), []
    candidates = list(plan)
    while candidates:
        chain.append(max((planned.stage.name for planned in candidates), key=lengths.get))
        candidates = [planned for planned in plan if chain[-1] in planned.stage.needs]
    return chain


def expected_length(plan: Sequence[Planned], jobs: int) -> float:
    """Minutes until all is done if the stages take what is expected, `jobs` of them at once, longest chain first."""
    lengths, now = chain_lengths(plan), 0.0
    waiting, running = list(plan), {}  # running: stage -> when it ends
    while waiting or running:
        unfinished = {planned.stage.name for planned in waiting} | running.keys()
        ready = [planned for planned in waiting if not planned.stage.needs.keys() & unfinished]
        ready.sort(key=lambda planned: -lengths[planned.stage.name])
        for planned in ready[: jobs - len(running)]:
            running[planned.stage.name] = now + planned.minutes
            waiting.remove(planned)
        first = min(running, key=running.get)
        now = running.pop(first)
    return now


def duration(minutes: float) -> str:
    """Minutes in words, rounded as an estimate deserves."""
    if minutes < 1:
        return "under 1 min"
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
