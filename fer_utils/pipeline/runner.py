"""The command line of ./run_all.sh: runs the notebooks that are not up to date and publishes what they make.

Exit codes: 0 all good; 1 a stage failed; 2 nothing was started (bad usage, unusable data, another run at work);
3 the time of --minutes is up and something is left to do; 130 interrupted.
"""

import argparse
import contextlib
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO

from filelock import FileLock, Timeout

from fer_utils.errors import DataError
from fer_utils.internet import OFFLINE, WEIGHTS_SERVER, why_out_of_reach
from fer_utils.paths import PROJECT_ROOT, atomic_write
from fer_utils.pipeline.execution import (
    StageFailed,
    TimeIsUp,
    check_kernel,
    clean_notebook,
    measure_memory,
    run_notebook,
    time_limit,
)
from fer_utils.pipeline.freshness import read_begun, read_record, write_begun
from fer_utils.pipeline.notebooks import UsageError, declared_parameters, read_code_cells
from fer_utils.pipeline.planning import (
    Planned,
    Run,
    describe_plan,
    describe_stages,
    duration,
    make_plan,
    must_run,
    prepare,
)
from fer_utils.pipeline.provenance import code_state, gather_provenance, last_run, run_facts
from fer_utils.pipeline.publish import DERIVED, DERIVED_MEGABYTES, Folders, check_writable, publish, remove_leftovers
from fer_utils.pipeline.published import find_problems, make_report, report_is_up_to_date
from fer_utils.pipeline.schedule import DONE, FAILED, STOPPED, Outcome, cannot_finish, run_together
from fer_utils.pipeline.stages import PROFILES, STAGES, Stage

# Notebooks at once, by device. Two on two cores gain 27 % on the sample, where much is not training, but only 3 to 10 %
# in training on FER2013, for twice the memory and other last digits.
JOBS = {"cpu": 1, "cuda": 3}
DEADLINE = "FER_DEADLINE"  # environment variable: until when training may go on, in seconds since the epoch
SECONDS_TO_END = 15  # that a notebook gets to write its checkpoint and to end in order


def main(argv: Sequence[str] | None = None, root: Path = PROJECT_ROOT, stages: tuple[Stage, ...] = STAGES) -> int:
    """Run the stages as the command line asks; returns the exit code."""
    options = parse_options(argv)
    try:
        if options.verify or options.report:
            return handle_published(options, root)
        if options.list:
            print(describe_stages(stages))
            return 0
        lock = contextlib.nullcontext() if options.dry_run else one_at_a_time(root)
        with sigterm_like_ctrl_c(), lock:
            deadline = time.time() + 60 * options.minutes
            run = prepare(options, root, stages)
            plan, jobs = make_plan(run), options.jobs or JOBS[run.device]
            print(describe_plan(run, plan, jobs))
            return 0 if options.dry_run else run_stages(run, plan, jobs, deadline)
    except (UsageError, DataError) as error:
        print(f"run_all.sh: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        logging.getLogger("asyncio").disabled = True  # it would report the cell that nobody waits for any more
        print("\nInterrupted. What was published is intact; the next ./run_all.sh goes on from here.", file=sys.stderr)
        return 130


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse itself ends the program with exit code 2 for what it does not know."""
    parser = argparse.ArgumentParser(
        prog="run_all.sh",
        description="Run every notebook and build the report from what they make. What is up to date is not run again.",
        epilog="Exit codes: 0 all good; 1 a stage failed; 2 nothing was started; 3 out of time; 130 interrupted.",
    )
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--data", default="auto", help="path of FER2013, or sample; auto looks in $FER_DATA and data/")
    data.add_argument("--download", action="store_true", help="download FER2013 from Kaggle first")
    parser.add_argument("--rafdb", metavar="PATH", default="", help="folder of RAF-DB: 11 then runs on it")
    parser.add_argument(
        "--profile",
        choices=PROFILES,
        help="sample: the embedded sample, minutes; cpu: FER2013 overnight; full: FER2013 on a GPU, several seeds"
        " (default: full with data and a GPU, cpu with data, else sample)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    selection = parser.add_mutually_exclusive_group()
    selection.add_argument("--only", metavar="04,07", help="run these stages only")
    selection.add_argument("--from", dest="start", metavar="05", help="run this stage and those after it")
    parser.add_argument("--force", action="store_true", help="run stages even when they are up to date")
    parser.add_argument(
        "--jobs",
        type=at_least(1, int),
        metavar="N",
        help=f"run up to N notebooks at once (default: {JOBS['cpu']}, on a GPU {JOBS['cuda']}); cores are shared out",
    )
    parser.add_argument(
        "--minutes",
        type=at_least(0.1, float),
        default=float("inf"),
        metavar="N",
        help="stop after N minutes, with exit code 3 if something is left; the next run goes on from there",
    )
    parser.add_argument("--list", action="store_true", help="list the stages and stop")
    parser.add_argument("--dry-run", action="store_true", help="show what would run, and why, and stop")
    published = parser.add_mutually_exclusive_group()
    published.add_argument(
        "--report",
        action="store_true",
        help="build report, tables of docs/ and model card from what is published, and stop; no data needed",
    )
    published.add_argument(
        "--verify",
        action="store_true",
        help="check that every file of the report comes from a recorded run, and stop; no data needed",
    )
    parser.add_argument(
        *("-p", "--parameter"),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a parameter of the notebooks that declare it; results go to outputs/custom/; may be repeated",
    )
    options = parser.parse_args(argv)
    options.given = [name for name, value in vars(options).items() if value != parser.get_default(name)]
    return options


def handle_published(options: argparse.Namespace, root: Path) -> int:
    """Do what --report or --verify asks, which start no notebook; returns the exit code."""
    option = "--report" if options.report else "--verify"
    others = [name for name in options.given if name not in ("report", "verify", "profile")]
    if others:
        flag = {"start": "from"}.get(others[0], others[0].replace("_", "-"))
        raise UsageError(f"{option} only looks at what is published and runs nothing; leave out --{flag}")
    folders = Folders.of(root, options.profile or "full", custom=False)
    return rebuild_report(folders) if options.report else verify_published(folders)


def rebuild_report(folders: Folders) -> int:
    """Build the report anew from what is published, and the model card; returns the exit code."""
    if not folders.manifests():
        raise UsageError(f"nothing is published in {folders.reports}; run ./run_all.sh first")
    with one_at_a_time(folders.root):
        try:
            make_report(folders, last_run(folders.reports))
            if folders.reports == PROJECT_ROOT / "reports":
                from fer_utils.release import renew_card  # imports PyTorch: too slow for all other runs

                renew_card()
        except (OSError, ValueError) as error:
            print(f"run_all.sh: the report cannot be built: {error}", file=sys.stderr)
            return 1
    print(f"The report is {folders.reports / 'report.html'}")
    return 0


def verify_published(folders: Folders) -> int:
    """Print which published files do not come from a recorded run; returns the exit code, 0 when there are none."""
    problems = find_problems(folders)
    for problem in problems:
        print(problem)
    number = len(folders.manifests())
    print(f"Problems found: {len(problems)}." if problems else f"All files of {number} manifests are as recorded.")
    return 1 if problems else 0


def at_least(least: float, kind: type) -> Callable[[str], float]:
    """A parser of numbers that refuses what is smaller, for argparse."""

    def parse(text: str) -> float:
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number of {least:g} or more")
        return value

    parse.__name__ = {int: "whole number", float: "number"}[kind]  # argparse: "invalid whole number value"
    return parse


@contextlib.contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Hold the project's lock; UsageError with the other run's pid when there is one.

    The operating system frees the lock when its owner ends, however it ends; neither its file nor that of the pid says
    whether a run is at work.
    """
    folder = root / "outputs" / "work"
    path, pid = folder / "lock", folder / "pid"
    lock = FileLock(path, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            raise UsageError(f"{path} is a link; delete it and run again")
        lock.acquire()
    except Timeout:
        owner = pid.read_text() if pid.is_file() else "unknown"
        raise UsageError(f"another run is at work here (pid {owner}); wait for it, or end it first") from None
    except OSError as error:
        raise UsageError(f"cannot write to {folder} ({error.strerror}); make it writable and run again") from None
    try:
        atomic_write(pid, str(os.getpid()).encode())
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does, with the kernel stopped."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Screen:
    """The terminal and the log file at once. papermill writes what notebooks print here, as to a file."""

    def __init__(self, log: TextIO, is_shown: bool = True) -> None:
        """log: open for writing. is_shown: whether the terminal gets it as well."""
        self.log, self.is_shown = log, is_shown

    def write(self, text: str) -> None:
        """Write text as it is."""
        if self.is_shown:
            sys.stdout.write(text)
        self.log.write(text)

    def flush(self) -> None:
        """Make what was written visible now."""
        sys.stdout.flush()
        self.log.flush()

    def say(self, text: str) -> None:
        """Write one line of the runner itself, in the log with the time."""
        print(text, flush=True)
        self.log.write(f"--- {datetime.now():%Y-%m-%d %H:%M:%S}  {text}\n")
        self.log.flush()


def run_stages(run: Run, plan: list[Planned], jobs: int, deadline: float) -> int:
    """Run what the plan says, publish each stage as it ends, and build the report; returns the exit code.

    jobs: how many stages at once. deadline: when to stop, in seconds since the epoch.
    """
    waiting = [planned for planned in plan if planned.reasons]
    if not waiting and report_is_up_to_date(run.folders):
        return 0
    check_writable(run.folders)
    remove_leftovers(run.folders)
    if waiting:
        check_kernel()
        look_up_once(run, waiting)
    with open_screen(run.folders.work / "run.log") as screen:
        screen.log.write(describe_plan(run, plan, jobs) + "\n")
        ended = run_waiting(run, waiting, jobs, deadline, screen)
        failed = [name for name, outcome in ended.items() if outcome.status == FAILED]
        stopped = [name for name, outcome in ended.items() if outcome.status == STOPPED]
        try:
            make_report(run.folders, provenance_of(run, ran=any(outcome.status == DONE for outcome in ended.values())))
            screen.say(f"The report is {run.folders.reports / 'report.html'}")
        except (OSError, ValueError) as error:
            failed.append("the report")
            screen.say(f"the report cannot be built: {error}")
        if failed:
            screen.say(f"FAILED or skipped: {', '.join(failed)}. The log is {run.folders.work / 'run.log'}")
        if stopped:
            screen.say(f"Out of time. Left to do: {', '.join(stopped)}; the next ./run_all.sh goes on from here.")
    return 1 if failed else 3 if stopped else 0


def provenance_of(run: Run, ran: bool) -> dict[str, object]:
    """Where the results come from: from this run, or from the last one when this one has made nothing."""
    earlier = last_run(run.folders.reports)
    if earlier and not ran:
        return earlier
    return gather_provenance(run.root, run.faces, Path(run.source).name, run.device, run.profile)


def run_waiting(run: Run, waiting: Sequence[Planned], jobs: int, deadline: float, screen: Screen) -> dict[str, Outcome]:
    """Run the stages, one after another or several at once; returns how each ended."""
    deadline_for_training(deadline)
    if jobs > 1 and len(waiting) > 1:
        return run_together(
            waiting,
            jobs,
            attempt=lambda planned, log: attempt_apart(run, planned, deadline, log),
            may_start=lambda planned, ended: refuse(planned, ended, deadline),
            log_of=lambda name: run.folders.work / f"{name}.log",
            say=screen.say,
        )
    ended: dict[str, Outcome] = {}
    for position, planned in enumerate(waiting):
        name, left = planned.stage.name, sum(later.minutes for later in waiting[position:])
        screen.say(f"[{position + 1}/{len(waiting)}] {name} (time left for all: {duration(left)})")
        ended[name] = refuse(planned, ended, deadline) or attempt(run, planned, deadline, screen)
        screen.say(f"{name} {ended[name].text}")
    return ended


def look_up_once(run: Run, waiting: Sequence[Planned]) -> None:
    """If ImageNet weights are out of reach, say so now, and spare every notebook the look-up."""
    if any("pretrained" in declared_parameters(run.cells[planned.stage.name]) for planned in waiting):
        reason = why_out_of_reach(WEIGHTS_SERVER)
        if reason:
            print(f"No internet ({reason}): what is not in torch's cache starts without ImageNet weights.")
            os.environ[OFFLINE] = "1"


def deadline_for_training(deadline: float) -> None:
    """Tell notebooks when to stop training: in time to write a checkpoint and to end in order."""
    if deadline < float("inf"):
        os.environ[DEADLINE] = str(deadline - SECONDS_TO_END)
    else:
        os.environ.pop(DEADLINE, None)


def refuse(planned: Planned, ended: Mapping[str, Outcome], deadline: float) -> Outcome | None:
    """The outcome of a stage that is not to be started: it needs what did not come about, or time is short."""
    for status in (FAILED, STOPPED):
        missing = [need for need in planned.stage.needs if need in ended and ended[need].status == status]
        if missing:
            return Outcome(status, f"is skipped: it needs {', '.join(missing)}")
    reason = cannot_finish(planned, deadline)
    return Outcome(STOPPED, f"is not started: {reason}") if reason else None


def attempt(run: Run, planned: Planned, deadline: float, screen: Screen) -> Outcome:
    """Run one stage, if it still has to, until the deadline at the latest; returns how it ended."""
    stage = planned.stage
    if not must_run(run, planned):
        return Outcome(DONE, "is up to date after all: the files it needs came out the same")
    try:
        with time_limit(deadline):
            seconds = run_stage(run, stage, screen)
        return Outcome(DONE, f"is done ({duration(seconds / 60)})")
    except TimeIsUp:
        return Outcome(STOPPED, "is stopped: the time is up")
    except (StageFailed, OSError) as error:  # OSError: the disk is full, for example
        return Outcome(FAILED, f"FAILED at {error}\n  the notebook so far: {notebook_of(run, stage)}")


def attempt_apart(run: Run, planned: Planned, deadline: float, log: Path) -> Outcome:
    """As attempt, in a process of its own: what the notebook prints goes to a log of its own, and not to the screen."""
    with open_screen(log) as screen, contextlib.redirect_stdout(screen.log):
        return attempt(run, planned, deadline, Screen(screen.log, is_shown=False))


def run_stage(run: Run, stage: Stage, screen: Screen) -> float:
    """Run one notebook in its staging folder and publish what it made; returns the seconds that took."""
    staging, depends, started = run.folders.staging(stage.name), run.depends(stage), datetime.now(timezone.utc)
    notebook = run.root / "notebooks" / f"{stage.name}.ipynb"
    if read_code_cells(notebook) != run.cells[stage.name]:
        raise StageFailed("its start: the notebook was changed since this run was planned; run again")
    code = code_state(run.root)
    prepare_staging(staging, run.begins(stage))
    resumed = (staging / "training").is_dir()
    minutes = stage.timeout_minutes or max(10, 10 * stage.minutes[run.profile])
    with measure_memory() as memory, stopwatch(staging / "training" / "seconds") as spent:
        run_notebook(notebook, notebook_of(run, stage), injected(run, stage), round(60 * minutes), screen, screen.log)
    check_gives(stage, staging)
    check_derived(staging)
    clean_notebook(notebook_of(run, stage), public_names(run))
    facts = run_facts(started, run.device, code) | {"seconds": round(spent(), 1), "resumed": resumed, **memory}
    try:
        record = read_record(run.folders.manifest(stage.name))
        publish(stage.name, run.folders, record.all_files() if record else (), depends, facts)
    except OSError as error:
        raise StageFailed(f"its end: what it made cannot be published ({error}); it will run again") from error
    shutil.rmtree(staging)
    return facts["seconds"]


@contextlib.contextmanager
def stopwatch(file: Path) -> Iterator[Callable[[], float]]:
    """Gives the seconds that a stage has taken so far, with those of stopped runs whose training it goes on with.

    file: keeps them for the next run, beside the checkpoints; where there are none, nothing goes on.
    """
    before, started = float(file.read_text()) if file.is_file() else 0.0, time.monotonic()

    def spent() -> float:
        return before + time.monotonic() - started

    try:
        yield spent
    finally:
        if file.parent.is_dir():
            with contextlib.suppress(OSError):  # a full disk: what went wrong before it matters more
                atomic_write(file, str(spent()).encode())


def injected(run: Run, stage: Stage) -> dict[str, object]:
    """The values for the notebook's parameters cell: what the runner knows, the profile's values, those set by hand."""
    return {
        "data": run.source,
        "profile": run.profile,
        "device": run.device,
        "out": str(run.folders.staging(stage.name)),
        "inputs": str(run.inputs[stage.name].reports),
        **({"rafdb": run.rafdb} if run.on_rafdb(stage) else {}),
        **run.parameters[stage.name],
    }


def check_gives(stage: Stage, staging: Path) -> None:
    """StageFailed when a declared file is missing or empty."""
    for give in stage.gives:
        if not (staging / give).is_file() or not (staging / give).stat().st_size:
            raise StageFailed(f"its end: it did not write {give}")


def check_derived(staging: Path) -> None:
    """StageFailed when a file that git shall keep is too large for it."""
    for path in (staging / "checkpoints" / name for name in DERIVED):
        size = path.stat().st_size / 1e6 if path.is_file() else 0
        if size > DERIVED_MEGABYTES:
            raise StageFailed(f"its end: {path.name} has {size:.1f} MB, and git keeps up to {DERIVED_MEGABYTES:g} MB")


def notebook_of(run: Run, stage: Stage) -> Path:
    """Where a stage's executed notebook lies while it runs."""
    return run.folders.staging(stage.name) / "notebook.ipynb"


def public_names(run: Run) -> dict[str, str]:
    """Absolute paths of this machine -> what published notebooks say instead."""
    names = {path: Path(path).name for path in (run.source, run.rafdb) if path not in ("sample", "")}
    home = str(Path.home())
    return names | {str(run.root): ""} | ({} if home == "/" else {home: "~"})


def prepare_staging(staging: Path, depends: Mapping) -> None:
    """Empty a stage's folder, but keep the training of a stopped run that depended on exactly the same things."""
    resume = read_begun(staging) == depends
    staging.mkdir(parents=True, exist_ok=True)
    for path in staging.iterdir():
        if not (resume and path.name == "training"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_begun(staging, depends)


@contextlib.contextmanager
def open_screen(path: Path) -> Iterator[Screen]:
    """Open the log file of a run; what papermill and others log goes there, too."""
    with path.open("w", encoding="utf-8") as log:
        handler = logging.StreamHandler(log)
        logging.getLogger().addHandler(handler)
        try:
            yield Screen(log)
        finally:
            logging.getLogger().removeHandler(handler)
