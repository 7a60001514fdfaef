"""The command line of ./run_all.sh: its options, its exit codes, and `main`."""

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path

from fer_utils.errors import DataError
from fer_utils.paths import PROJECT_ROOT
from fer_utils.pipeline.console import describe_plan, describe_stages
from fer_utils.pipeline.lock import project_lock
from fer_utils.pipeline.notebooks import UsageError
from fer_utils.pipeline.planning import make_plan, make_settings
from fer_utils.pipeline.provenance import read_last_run
from fer_utils.pipeline.publish import Folders
from fer_utils.pipeline.report_files import make_report
from fer_utils.pipeline.runner import RunResult, run_stages
from fer_utils.pipeline.stages import PROFILES, STAGES, Stage
from fer_utils.pipeline.verify import find_problems

# Default number of notebooks at once. On two CPU cores, two at once gain 27 % on the sample, where much of the time is
# not training. Training on FER2013 gains only 3 to 10 %, needs twice the memory, and gives losses with different last
# digits.
JOBS = {"cpu": 1, "cuda": 3}


class ExitCode(IntEnum):
    """What the exit code of ./run_all.sh means."""

    SUCCESS = 0
    FAILURE = 1  # a stage failed, or --verify found a problem
    NOT_STARTED = 2  # wrong options, unusable data, or another run in progress; argparse uses 2 as well
    OUT_OF_TIME = 3  # the time of --minutes is up, and something is left to do
    INTERRUPTED = 130  # Ctrl-C, SIGTERM or a closed terminal
    OUTPUT_CLOSED = 141  # nobody reads what it prints any more, as in ./run_all.sh --list | head -1


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: Sequence[str] | None = None, root: Path = PROJECT_ROOT, stages: tuple[Stage, ...] = STAGES) -> ExitCode:
    """Do what the command line asks for; returns the exit code."""
    with stop_once():
        try:
            try:
                return run_command(argv, root, stages)
            finally:
                sys.stdout.flush()
        except (UsageError, DataError) as error:
            return end(f"run_all.sh: {error}", ExitCode.NOT_STARTED)
        except KeyboardInterrupt:
            message = "\nInterrupted. Published files are intact; the next ./run_all.sh continues from here."
            return end(message, ExitCode.INTERRUPTED)
        except BrokenPipeError:
            return end("", ExitCode.OUTPUT_CLOSED)
        except OSError as error:
            message = f"run_all.sh: the run stopped: {error}. Repair this and run again; it continues from here"
            return end(message, ExitCode.FAILURE)


def run_command(argv: Sequence[str] | None, root: Path, stages: tuple[Stage, ...]) -> ExitCode:
    """Parse the command line and do what it asks for; whatever stops this is raised."""
    options = parse_options(argv)
    if options.report or options.verify:
        return handle_published(options, root)
    if options.list:
        print(describe_stages(stages))
        return ExitCode.SUCCESS
    return plan_and_run(options, root, stages)


def plan_and_run(options: argparse.Namespace, root: Path, stages: tuple[Stage, ...]) -> ExitCode:
    """Plan a run, print the plan and, without --dry-run, run it."""
    with contextlib.nullcontext() if options.dry_run else project_lock(root):
        deadline = time.time() + 60 * options.minutes
        try:
            settings = make_settings(options, root, stages)
            plan = make_plan(settings)
        except OSError as error:
            raise UsageError(f"a file cannot be read: {error}") from None
        jobs = options.jobs or JOBS[settings.device]
        print(describe_plan(settings, plan, jobs))
        if options.dry_run:
            return ExitCode.SUCCESS
        return choose_exit_code(run_stages(settings, plan, jobs, deadline))


def choose_exit_code(result: RunResult) -> ExitCode:
    """Return the exit code of a run; a failure counts more than work left to do."""
    if result.failures:
        return ExitCode.FAILURE
    return ExitCode.OUT_OF_TIME if result.unfinished else ExitCode.SUCCESS


@contextlib.contextmanager
def stop_once() -> Iterator[None]:
    """Let each of STOP_SIGNALS stop the run as Ctrl-C does, so that no kernel is left behind.

    Only the first one counts: a second one would interrupt the end of the run. A signal that is ignored, as with nohup,
    stays ignored.
    """
    earlier = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    handled = [number for number in STOP_SIGNALS if earlier[number] != signal.SIG_IGN]

    def stop(*_: object) -> None:
        for number in handled:
            signal.signal(number, signal.SIG_IGN)
        earlier.clear()  # the program ends soon, so they stay ignored
        raise KeyboardInterrupt

    for number in handled:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def end(message: str, code: ExitCode) -> ExitCode:
    """Print the last message, if somebody can still read it, and return the exit code."""
    with contextlib.suppress(OSError):
        print(message, end="\n" if message else "", file=sys.stderr, flush=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # closed; without this, Python would complain when it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


# --- Options ----------------------------------------------------------------------------------------------------------


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; argparse ends the program with exit code 2 when an option is wrong.

    The result also holds `changed`, the names of the options that differ from their default.
    """
    parser = argparse.ArgumentParser(
        prog="run_all.sh",
        description="Run every notebook and build the report from the results. Up-to-date notebooks are skipped.",
        epilog="Exit codes: 0 success; 1 a notebook failed, or --verify found a problem; 2 nothing was started;"
        " 3 out of time; 130 interrupted; 141 output closed.",
    )
    add_data_options(parser)
    add_selection_options(parser)
    add_run_options(parser)
    add_other_actions(parser)
    options = parser.parse_args(argv)
    options.changed = [name for name, value in vars(options).items() if value != parser.get_default(name)]
    return options


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose data and profile."""
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "--data",
        type=path_text,
        default="auto",
        metavar="PATH",
        help="path of FER2013, or sample for the embedded sample; default: look in $FER_DATA and in data/",
    )
    data.add_argument("--download", action="store_true", help="download FER2013 from Kaggle first")
    parser.add_argument("--rafdb", type=path_text, metavar="PATH", help="folder of RAF-DB; notebook 11 then runs on it")
    parser.add_argument(
        "--profile",
        choices=PROFILES,
        help="sample: the embedded sample, in minutes; cpu: FER2013, overnight; full: FER2013 on a GPU, with six seeds"
        " (default: full with FER2013 and a GPU, cpu with FER2013, otherwise sample)",
    )


def add_selection_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose notebooks and their parameters."""
    selection = parser.add_mutually_exclusive_group()
    selection.add_argument("--only", metavar="04,07", help="run only these notebooks")
    selection.add_argument("--from", dest="start", metavar="05", help="run this notebook and all after it")
    parser.add_argument("--force", action="store_true", help="run notebooks even if they are up to date")
    parser.add_argument(
        *("-p", "--parameter"),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a parameter in all notebooks that declare it; results go to outputs/custom/; can be repeated",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how notebooks run."""
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda if PyTorch finds a GPU"
    )
    parser.add_argument(
        "--jobs",
        type=number_of_at_least(1, int),
        metavar="N",
        help=f"run up to N notebooks at once, which share the cores (default: {JOBS['cpu']}, on a GPU {JOBS['cuda']})",
    )
    parser.add_argument(
        "--minutes",
        type=number_of_at_least(0.1, float),
        default=float("inf"),
        metavar="N",
        help="stop after N minutes; if something is left to do, the exit code is 3 and the next run continues",
    )


def add_other_actions(parser: argparse.ArgumentParser) -> None:
    """Add the options that do something else than run notebooks."""
    parser.add_argument("--list", action="store_true", help="list all notebooks with their expected times, then exit")
    parser.add_argument("--dry-run", action="store_true", help="print which notebooks would run and why, then exit")
    published = parser.add_mutually_exclusive_group()
    published.add_argument(
        "--report",
        action="store_true",
        help="build the report, the tables in docs/ and the model card from published results, then exit;"
        " needs no data",
    )
    published.add_argument(
        "--verify",
        action="store_true",
        help="check that every file of the report comes from a recorded run, then exit; needs no data",
    )


def path_text(text: str) -> str:
    """Return a path as it was given; an empty one is an error, because it would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def number_of_at_least(minimum: float, kind: type) -> Callable[[str], float]:
    """Return an argparse type that accepts numbers from `minimum` on. kind: int or float."""

    def parse(text: str) -> float:
        value = kind(text)
        if not minimum <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {minimum:g}")
        return value

    parse.__name__ = {int: "whole number", float: "number"}[kind]  # for argparse's "invalid whole number value"
    return parse


# --- Published results ------------------------------------------------------------------------------------------------


def handle_published(options: argparse.Namespace, root: Path) -> ExitCode:
    """Do what --report or --verify asks for; UsageError when it is combined with an option of a run."""
    option = "--report" if options.report else "--verify"
    others = [name for name in options.changed if name not in ("report", "verify", "profile")]
    if others:
        other = {"start": "from"}.get(others[0], others[0].replace("_", "-"))
        raise UsageError(f"{option} only works on published results and runs nothing; leave out --{other}")
    folders = Folders.of(root, options.profile or "full", custom=False)
    return rebuild_report(folders) if options.report else verify_published(folders)


def rebuild_report(folders: Folders) -> ExitCode:
    """Build the report again from published results."""
    if not folders.manifests():
        raise UsageError(f"nothing is published in {folders.reports}; run ./run_all.sh first")
    with project_lock(folders.root):
        try:
            make_report(folders, read_last_run(folders.reports))
        except (OSError, ValueError) as error:
            print(f"run_all.sh: the report cannot be built: {error}", file=sys.stderr)
            return ExitCode.FAILURE
    print(f"The report is {folders.reports / 'report.html'}")
    return ExitCode.SUCCESS


def verify_published(folders: Folders) -> ExitCode:
    """Print which published files do not come from a recorded run."""
    problems = find_problems(folders)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found.")
        return ExitCode.FAILURE
    print(f"All files of {len(folders.manifests())} manifests match their records.")
    return ExitCode.SUCCESS
