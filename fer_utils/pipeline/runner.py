"""Run the stages of a plan: execute each notebook in a staging folder, publish what it made, and build the report."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO

from fer_utils.internet import OFFLINE, WEIGHTS_SERVER, why_out_of_reach
from fer_utils.paths import atomic_write
from fer_utils.pipeline.console import (
    Console,
    LiveLines,
    RunningStage,
    describe_next_steps,
    describe_plan,
    describe_start,
    format_duration,
    open_log,
)
from fer_utils.pipeline.execution import (
    StageFailed,
    TimeIsUp,
    check_kernel,
    clean_notebook,
    measure_memory,
    run_notebook,
    time_limit,
)
from fer_utils.pipeline.freshness import read_record, read_start_conditions, write_start_conditions
from fer_utils.pipeline.notebooks import read_code_cells, read_parameters
from fer_utils.pipeline.planning import PlannedStage, Settings, must_run
from fer_utils.pipeline.provenance import code_state, gather_provenance, gather_run_facts, read_last_run
from fer_utils.pipeline.publish import DERIVED, DERIVED_MEGABYTES, check_writable, publish, remove_leftovers
from fer_utils.pipeline.report_files import make_report, report_is_up_to_date
from fer_utils.pipeline.schedule import (
    DONE,
    FAILED,
    OUT_OF_TIME,
    Outcome,
    ParallelRun,
    explain_short_time,
    measure_pace_so_far,
)
from fer_utils.pipeline.stages import Stage

DEADLINE = "FER_DEADLINE"  # environment variable: when training has to stop, in seconds since the epoch
REPORT = "the report"
SECONDS_TO_END = 15  # time that a notebook needs to save its checkpoint and to end


@dataclass(frozen=True)
class RunResult:
    """How a run ended; both lists are empty when everything went well."""

    failures: list[str]  # stages that failed or need one that failed, and REPORT if it could not be built
    unfinished: list[str]  # stages that the next run has to continue or start, because the time was up


def run_stages(settings: Settings, plan: Sequence[PlannedStage], jobs: int, deadline: float) -> RunResult:
    """Run the stages that have reasons to run, publish each one when it ends, and build the report.

    jobs: number of stages at once. deadline: when to stop, in seconds since the epoch.
    """
    waiting = [item for item in plan if item.reasons]
    if not waiting and report_is_up_to_date(settings.folders):
        print("\n".join(describe_next_steps(settings)))
        return RunResult([], [])
    check_writable(settings.folders, settings.profile)
    remove_leftovers(settings.folders)
    if waiting:
        check_kernel()
        check_weights_server(settings, waiting)
    with (settings.folders.work / "run.log").open("w", encoding="utf-8") as log:
        log.write(describe_plan(settings, plan, jobs) + "\n")
        console = Console(log)
        console.print_line(f"Notebooks print to {log_path(settings, 'NN_*')}")
        outcomes = run_waiting(settings, waiting, jobs, deadline, console)
        report_is_built = write_report(settings, outcomes, console)
        result = summarize(outcomes, report_is_built)
        print_result(settings, result, console)
    return result


def check_weights_server(settings: Settings, waiting: Sequence[PlannedStage]) -> None:
    """Check once whether ImageNet weights can be downloaded; if not, print it and tell every notebook not to try."""
    if any("pretrained" in read_parameters(settings.cells[item.name]) for item in waiting):
        reason = why_out_of_reach(WEIGHTS_SERVER)
        if reason:
            print(
                f"No internet ({reason}): networks start without ImageNet weights unless these are in PyTorch's cache."
            )
            os.environ[OFFLINE] = "1"


def run_waiting(
    settings: Settings, waiting: Sequence[PlannedStage], jobs: int, deadline: float, console: Console
) -> dict[str, Outcome]:
    """Run the stages one after another, or several at once; returns stage -> outcome."""
    set_training_deadline(deadline)
    if jobs > 1 and len(waiting) > 1:
        return ParallelRun(
            waiting,
            jobs,
            run_stage=lambda item, log: try_stage_apart(settings, item, deadline, log),
            refuse=lambda item, outcomes: refuse_stage(item, outcomes, deadline),
            log_path=lambda name: log_path(settings, name),
            print_line=console.print_line,
        ).run()
    outcomes: dict[str, Outcome] = {}
    live_lines = LiveLines(console.print_line)
    for position, item in enumerate(waiting):
        outcome = refuse_stage(item, outcomes, deadline)
        if not outcome:
            pace, log = measure_pace_so_far(waiting, outcomes), log_path(settings, item.name)
            minutes_left = pace * sum(later.minutes for later in waiting[position:])
            live_lines.print_above(describe_start(item, position + 1, len(waiting), pace, minutes_left))
            with live_lines.follow(item.name, RunningStage(log, item.minutes * pace)):
                outcome = try_stage(settings, item, deadline, log)
        outcomes[item.name] = outcome
        live_lines.print_above(f"{item.name} {outcome.text}")
    return outcomes


def log_path(settings: Settings, stage: str) -> Path:
    """Return the path of a stage's log, which holds what its notebook prints."""
    return settings.folders.work / f"{stage}.log"


def set_training_deadline(deadline: float) -> None:
    """Set the environment variable that tells notebooks when to stop training, early enough to save a checkpoint."""
    if deadline < float("inf"):
        os.environ[DEADLINE] = str(deadline - SECONDS_TO_END)
    else:
        os.environ.pop(DEADLINE, None)


# --- Report and result ------------------------------------------------------------------------------------------------


def write_report(settings: Settings, outcomes: Mapping[str, Outcome], console: Console) -> bool:
    """Build the report, or print why it cannot be built; returns whether it was built."""
    has_new_results = any(outcome.status == DONE for outcome in outcomes.values())
    try:
        make_report(settings.folders, choose_provenance(settings, has_new_results))
    except (OSError, ValueError) as error:
        console.print_line(f"the report cannot be built: {error}")
        return False
    return True


def refresh_report(settings: Settings) -> None:
    """Build the report during a run, so that there is something to look at.

    No error here may cost the notebooks that are still to run, not even a mistake in our code. The end of the run
    builds the report again and shows it.
    """
    with contextlib.suppress(Exception):
        make_report(settings.folders, choose_provenance(settings, has_new_results=True))


def choose_provenance(settings: Settings, has_new_results: bool) -> dict[str, object]:
    """Return the provenance of this run, or of the last one when this run made no new results."""
    last_provenance = read_last_run(settings.folders.reports)
    if last_provenance and not has_new_results:
        return last_provenance
    source = Path(settings.source).name
    return gather_provenance(settings.root, settings.faces, source, settings.device, settings.profile)


def summarize(outcomes: Mapping[str, Outcome], report_is_built: bool) -> RunResult:
    """Collect what failed and what is left to do."""
    failures = [name for name, outcome in outcomes.items() if outcome.status == FAILED]
    unfinished = [name for name, outcome in outcomes.items() if outcome.status == OUT_OF_TIME]
    return RunResult(failures if report_is_built else [*failures, REPORT], unfinished)


def print_result(settings: Settings, result: RunResult, console: Console) -> None:
    """Print which stages failed and which are left to do, and what to do next."""
    if result.failures:
        console.print_line(f"FAILED or skipped: {', '.join(result.failures)}.")
    if result.unfinished:
        stages = ", ".join(result.unfinished)
        console.print_line(f"Out of time. Left to do: {stages}. The next ./run_all.sh continues from here.")
    if REPORT not in result.failures:
        for line in describe_next_steps(settings):
            console.print_line(line)


# --- One stage --------------------------------------------------------------------------------------------------------


def refuse_stage(item: PlannedStage, outcomes: Mapping[str, Outcome], deadline: float) -> Outcome | None:
    """Return the outcome of a stage that must not start, else None.

    A stage must not start when a stage that it needs failed or ran out of time, or when too little time is left.
    """
    for status in (FAILED, OUT_OF_TIME):
        missing = [need for need in item.stage.needs if need in outcomes and outcomes[need].status == status]
        if missing:
            return Outcome(status, f"is skipped: it needs {', '.join(missing)}")
    reason = explain_short_time(item, deadline)
    return Outcome(OUT_OF_TIME, f"is not started: {reason}") if reason else None


def try_stage(settings: Settings, item: PlannedStage, deadline: float, log: Path) -> Outcome:
    """Run one stage, if it still has to run, and return its outcome. It stops at the deadline and prints to its log."""
    if not must_run(settings, item):
        return Outcome(DONE, "is up to date after all: the files that it needs did not change")
    try:
        with open_log(log) as stream, time_limit(deadline):
            minutes = run_stage(settings, item.stage, stream) / 60
        refresh_report(settings)
        return Outcome(DONE, f"is done ({format_duration(minutes)})", minutes)
    except TimeIsUp:
        return Outcome(OUT_OF_TIME, "is stopped: the time is up")
    except (StageFailed, OSError) as error:  # OSError: for example a full disk
        notebook = staged_notebook(settings, item.stage)
        return Outcome(FAILED, f"FAILED at {error}\n  the notebook up to that point: {notebook}\n  its log: {log}")


def try_stage_apart(settings: Settings, item: PlannedStage, deadline: float, log: Path) -> Outcome:
    """Do the same as try_stage in a process of its own, whose terminal belongs to the live lines."""
    with contextlib.redirect_stdout(None):
        return try_stage(settings, item, deadline, log)


def run_stage(settings: Settings, stage: Stage, log: TextIO) -> float:
    """Run one notebook in its staging folder and publish what it made; returns the seconds that this took.

    StageFailed when the notebook does not run to its end or does not write its files.
    """
    depends, started, code = settings.depends(stage), datetime.now(timezone.utc), code_state(settings.root)
    staging = settings.folders.staging(stage.name)
    check_unchanged(settings, stage)
    prepare_staging(staging, settings.start_conditions(stage))
    facts: dict[str, object] = {"resumed": (staging / "training").is_dir()}
    with measure_memory() as memory, measure_seconds(staging / "training" / "seconds") as read_seconds:
        execute_stage(settings, stage, log)
    check_outputs(stage, staging)
    check_derived_size(staging)
    clean_notebook(staged_notebook(settings, stage), choose_public_names(settings))
    facts |= {"seconds": round(read_seconds(), 1), **memory}
    publish_stage(settings, stage, depends, gather_run_facts(started, settings.device, code) | facts)
    return facts["seconds"]


def check_unchanged(settings: Settings, stage: Stage) -> None:
    """StageFailed when the notebook was edited after the run was planned."""
    if read_code_cells(notebook_path(settings, stage)) != settings.cells[stage.name]:
        raise StageFailed("its start: the notebook was changed since this run was planned; run again")


def prepare_staging(staging: Path, conditions: Mapping) -> None:
    """Empty a stage's folder. The training of an unfinished run is kept if that run had the same start conditions."""
    can_resume = read_start_conditions(staging) == conditions
    staging.mkdir(parents=True, exist_ok=True)
    for path in staging.iterdir():
        if not (can_resume and path.name == "training"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_start_conditions(staging, conditions)


@contextlib.contextmanager
def measure_seconds(file: Path) -> Iterator[Callable[[], float]]:
    """Yield a function that returns the seconds of a stage so far, with those of the runs that this one resumes.

    file: keeps the seconds for the next run. It is next to the checkpoints, so without checkpoints nothing is added.
    """
    seconds_before, started = float(file.read_text()) if file.is_file() else 0.0, time.monotonic()

    def read_seconds() -> float:
        return seconds_before + time.monotonic() - started

    try:
        yield read_seconds
    finally:
        if file.parent.is_dir():
            with contextlib.suppress(OSError):  # a full disk must not hide the error that came before it
                atomic_write(file, str(read_seconds()).encode())


def execute_stage(settings: Settings, stage: Stage, log: TextIO) -> None:
    """Execute the stage's notebook with its parameters and its time limit."""
    minutes = stage.timeout_minutes or max(10, 10 * stage.minutes[settings.profile])
    notebook, target = notebook_path(settings, stage), staged_notebook(settings, stage)
    run_notebook(notebook, target, gather_parameters(settings, stage), round(60 * minutes), log)


def gather_parameters(settings: Settings, stage: Stage) -> dict[str, object]:
    """Return all values for the notebook's parameters cell: from the runner, the profile and -p."""
    return {
        "data": settings.source,
        "profile": settings.profile,
        "device": settings.device,
        "out": str(settings.folders.staging(stage.name)),
        "inputs": str(settings.inputs[stage.name].reports),
        **({"rafdb": settings.rafdb} if settings.uses_rafdb(stage) else {}),
        **settings.parameters[stage.name],
    }


def check_outputs(stage: Stage, staging: Path) -> None:
    """StageFailed when a file that the stage declares is missing or empty."""
    for file in stage.gives:
        if not (staging / file).is_file() or not (staging / file).stat().st_size:
            raise StageFailed(f"its end: it did not write {file}")


def check_derived_size(staging: Path) -> None:
    """StageFailed when a file that goes into git is too large for it."""
    for path in (staging / "checkpoints" / name for name in DERIVED):
        megabytes = path.stat().st_size / 1e6 if path.is_file() else 0
        if megabytes > DERIVED_MEGABYTES:
            limit = f"the limit for files in git is {DERIVED_MEGABYTES:g} MB"
            raise StageFailed(f"its end: {path.name} has {megabytes:.1f} MB, and {limit}")


def choose_public_names(settings: Settings) -> dict[str, str]:
    """Map absolute paths of this machine to the names that replace them in published notebooks."""
    names = {path: Path(path).name for path in (settings.source, settings.rafdb) if path not in ("sample", "")}
    home = str(Path.home())
    return names | {str(settings.root): ""} | ({} if home == "/" else {home: "~"})


def publish_stage(settings: Settings, stage: Stage, depends: Mapping, facts: Mapping) -> None:
    """Publish the files of a finished stage and delete its staging folder; StageFailed when this is not possible."""
    folders = settings.folders
    record = read_record(folders.manifest(stage.name))
    try:
        publish(stage.name, folders, record.all_files() if record else (), depends, facts)
    except OSError as error:
        raise StageFailed(f"its end: its files cannot be published ({error}); the next run repeats it") from error
    shutil.rmtree(folders.staging(stage.name))


def notebook_path(settings: Settings, stage: Stage) -> Path:
    """Return the path of the stage's notebook."""
    return settings.root / "notebooks" / f"{stage.name}.ipynb"


def staged_notebook(settings: Settings, stage: Stage) -> Path:
    """Return the path of the executed notebook while the stage is not published."""
    return settings.folders.staging(stage.name) / "notebook.ipynb"
