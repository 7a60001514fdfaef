"""What the runner prints: the list of stages, the plan, its messages, and a live line for each running notebook."""

import contextlib
import logging
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TextIO

from fer_utils.pipeline.planning import (
    PlannedStage,
    Settings,
    estimate_chains,
    estimate_total_minutes,
    find_longest_chain,
)
from fer_utils.pipeline.stages import PROFILES, Stage

# --- Terminal and logs ------------------------------------------------------------------------------------------------


class Console:
    """Prints the messages of the runner to the terminal and, with their time, to its log."""

    def __init__(self, log: TextIO) -> None:
        """log: open for writing."""
        self.log, self.terminal = log, sys.stdout

    def print_line(self, text: str) -> None:
        """Print a message."""
        print(text, file=self.terminal, flush=True)
        self.log.write(f"--- {datetime.now():%Y-%m-%d %H:%M:%S}  {text}\n")
        self.log.flush()


@contextlib.contextmanager
def open_log(path: Path) -> Iterator[TextIO]:
    """Open the log of a stage. Messages of Python's logging, such as papermill's, go to it as well."""
    with path.open("w", encoding="utf-8") as log:
        handler = logging.StreamHandler(log)
        handler.handleError = lambda record: None  # on a full disk, the error of the stage itself is reported
        logging.getLogger().addHandler(handler)
        try:
            yield log
        finally:
            logging.getLogger().removeHandler(handler)


# --- Live lines -------------------------------------------------------------------------------------------------------


# What training prints after an epoch, for example "seed 0: epoch   3/25  loss 1.61  val 40.1 %  9.8 s  left 8 min".
EPOCH = re.compile(
    r"(?P<run>.*?):? *\bepoch +(?P<epoch>\d+/\d+)(?:.*?  (?P<val>val .+?)(?=  |$))?(?:.*  (?P<left>left .+))?"
)


@dataclass(frozen=True)
class RunningStage:
    """A stage that runs now."""

    log: Path  # what its notebook prints
    minutes: float  # expected time
    started: float = field(default_factory=time.monotonic)

    def minutes_left(self) -> float:
        """Return the expected minutes until its end."""
        return max(0.0, self.minutes - (time.monotonic() - self.started) / 60)

    def describe_time(self) -> str:
        """Return the time since its start and the expected time as text, for example "3:05 of ~22 min"."""
        minutes, seconds = divmod(round(time.monotonic() - self.started), 60)
        return f"{minutes}:{seconds:02d} of ~{format_duration(max(1.0, self.minutes))}"

    def read_progress(self) -> str:
        """Return epoch, score on val and time left from the last line of its log; "" if that tells of no epoch."""
        found = EPOCH.search(read_last_line(self.log))
        if not found:
            return ""
        return "  ".join(filter(None, [f"epoch {found['epoch']}", found["val"], found["left"], found["run"]]))


class LiveLines:
    """Shows a line for each running notebook: its time, and its last epoch while it trains.

    On a terminal these lines are redrawn in place. Elsewhere a line is printed now and then, if there is a new epoch.
    """

    def __init__(self, print_line: Callable[[str], None], seconds: float = 60.0) -> None:
        """print_line: prints a line that stays. seconds: between two lines of one notebook without a terminal."""
        self.print_line, self.seconds = print_line, seconds
        self.terminal = sys.stdout
        self.lines_on_screen = 0
        self.last_prints: dict[str, tuple[float, str]] = {}  # notebook -> time and epoch of its last line

    def print_above(self, text: str) -> None:
        """Print a line that stays, above the live ones."""
        self._erase()
        self.print_line(text)

    def update(self, running: Mapping[str, RunningStage]) -> None:
        """Show the current state of each running notebook."""
        if self.terminal.isatty():
            self._redraw(running)
        else:
            self._print_changes(running)

    @contextlib.contextmanager
    def follow(self, name: str, stage: RunningStage) -> Iterator[None]:
        """Show the state of one notebook during the block."""
        ended = threading.Event()
        thread = threading.Thread(target=self._update_until, args=(ended, {name: stage}), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _update_until(self, ended: threading.Event, running: Mapping[str, RunningStage]) -> None:
        with contextlib.suppress(OSError):  # the terminal is closed; the next message of the runner fails as well
            while not ended.wait(1):
                self.update(running)

    def _redraw(self, running: Mapping[str, RunningStage]) -> None:
        self._erase()
        width = os.get_terminal_size().columns - 1
        for name, stage in running.items():
            print(f"  {name}  {stage.describe_time()}  {stage.read_progress()}".rstrip()[:width], file=self.terminal)
        self.lines_on_screen = len(running)
        self.terminal.flush()

    def _print_changes(self, running: Mapping[str, RunningStage]) -> None:
        for name, stage in running.items():
            progress = stage.read_progress()
            last_time, last_progress = self.last_prints.get(name, (time.monotonic(), ""))
            if progress not in ("", last_progress) and time.monotonic() - last_time >= self.seconds:
                self.print_line(f"  {name}  {stage.describe_time()}  {progress}")
                last_time, last_progress = time.monotonic(), progress
            self.last_prints[name] = last_time, last_progress

    def _erase(self) -> None:
        if self.lines_on_screen:
            # cursor up, then clear to the end of the screen
            self.terminal.write(f"\x1b[{self.lines_on_screen}A\x1b[J")
            self.lines_on_screen = 0


def read_last_line(log: Path, max_bytes: int = 4096) -> str:
    """Return the last line of a log that is not blank, without control characters; "" when there is none.

    max_bytes: how much of the end of the file is read.
    """
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - max_bytes))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    clean_lines = (re.sub(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f]", "", line).strip() for line in reversed(lines))
    return next(filter(None, clean_lines), "")


# --- Stages and plan in words -----------------------------------------------------------------------------------------


def describe_stages(stages: Iterable[Stage]) -> str:
    """Return the text of --list: every stage with its expected times and the stages that it needs."""
    lines = [f"{'stage':<26}" + "".join(f"{profile:>12}" for profile in PROFILES) + "   needs"]
    for stage in stages:
        times = "".join(f"{format_duration(stage.minutes[profile]):>12}" for profile in PROFILES)
        lines.append(f"{stage.name:<26}{times}   {', '.join(stage.needs) or 'only the data'}")
    return "\n".join(lines)


def describe_plan(settings: Settings, plan: Sequence[PlannedStage], jobs: int = 1) -> str:
    """Return the plan as text: data, profile, device, which stages run and why, and the expected time."""
    data = "embedded sample" if settings.source == "sample" else Path(settings.source).name
    lines = [
        f"Data: {data}. Profile: {settings.profile}. Device: {settings.device}. Report: {settings.folders.reports}",
        *_describe_inputs(settings),
        *(_describe_item(item) for item in plan),
        describe_time([item for item in plan if item.reasons], jobs),
    ]
    return "\n".join(lines)


def _describe_inputs(settings: Settings) -> list[str]:
    """Say which stages use RAF-DB, and of which stages the run reads published results."""
    lines = []
    if settings.rafdb:
        users = [stage.name for stage in settings.stages if settings.uses_rafdb(stage)]
        lines.append(f"RAF-DB is used by: {', '.join(users)}")
    names = {stage.name for stage in settings.stages}
    others = dict.fromkeys(need for stage in settings.stages for need in stage.needs if need not in names)
    if others:
        lines.append(f"Uses published results of: {', '.join(others)}")
    return lines


def _describe_item(item: PlannedStage) -> str:
    if not item.reasons:
        return f"  up to date  {item.name}"
    return f"  run         {item.name} ({format_duration(item.minutes)}): {'; '.join(item.reasons)}"


def describe_time(waiting: Sequence[PlannedStage], jobs: int) -> str:
    """Say how long the stages take; with several jobs also which chain of stages sets the lower limit."""
    if not waiting:
        return "Nothing to do: all is up to date."
    minutes = estimate_total_minutes(waiting, jobs)
    end = f"{datetime.now() + timedelta(minutes=minutes):%H:%M}"
    if jobs == 1:
        return f"Expected time: {format_duration(minutes)}, until {end}."
    chain = " -> ".join(name.split("_")[0] for name in find_longest_chain(waiting))
    lower_limit = format_duration(max(estimate_chains(waiting).values()))
    time_text = f"Expected time with {jobs} notebooks at once: {format_duration(minutes)}, until {end}"
    return f"{time_text}; longest chain: {chain} ({lower_limit})."


def describe_start(item: PlannedStage, position: int, total: int, pace: float, minutes_left: float) -> str:
    """Return the message that a stage starts: the position-th of `total`. pace: see planning.measure_pace.

    minutes_left: expected time until all stages are done.
    """
    own_time, time_left = format_duration(item.minutes * pace), format_duration(minutes_left)
    return f"[{position}/{total}] {item.name} starts ({own_time} expected; time left for all: {time_left})"


def describe_next_steps(settings: Settings) -> list[str]:
    """Return what to do after a run, one line each: open the report, start the demo and, on the sample, bring data."""
    demo = _shorten_path(settings.root / "run_demo.sh")
    demo = shlex.quote(demo if "/" in demo else f"./{demo}")
    steps = [
        f"Open the report:      {_shorten_path(settings.folders.reports / 'report.html')}",
        f"Start the demo:       {demo}",
    ]
    if settings.source == "sample":
        data = _shorten_path(settings.root / "data")
        steps.append(f"Bring your own data:  put Kaggle's archive.zip into {data}/ and run again ({data}/README.md)")
    return steps


def _shorten_path(path: Path) -> str:
    """Return a path relative to the current folder if it is below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def format_duration(minutes: float) -> str:
    """Return minutes as text, rounded like the estimate that they are."""
    if minutes < 1:
        return "under 1 min"
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
