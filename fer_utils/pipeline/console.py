"""What the runner prints: the list of stages, the plan, its messages, and a live line for each running notebook."""

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

# --- Terminal and log -------------------------------------------------------------------------------------------------


class Console:
    """Writes to the terminal and to a log file. papermill takes it as the file for a notebook's output."""

    def __init__(self, log: TextIO, terminal: bool = True) -> None:
        """log: open for writing. terminal: whether a notebook's output goes to the terminal as well."""
        self.log, self.terminal = log, terminal

    def write(self, text: str) -> None:
        """Write what a notebook printed, unchanged."""
        if self.terminal:
            sys.stdout.write(text)
        self.log.write(text)

    def flush(self) -> None:
        """Make everything that was written visible now."""
        sys.stdout.flush()
        self.log.flush()

    def print_line(self, text: str) -> None:
        """Print a message of the runner itself; in the log it gets the time."""
        print(text, flush=True)
        self.log.write(f"--- {datetime.now():%Y-%m-%d %H:%M:%S}  {text}\n")
        self.log.flush()


@contextlib.contextmanager
def open_console(path: Path, terminal: bool = True) -> Iterator[Console]:
    """Open a console with this log file. Messages of Python's logging, such as papermill's, go to the log as well."""
    with path.open("w", encoding="utf-8") as log:
        handler = logging.StreamHandler(log)
        logging.getLogger().addHandler(handler)
        try:
            yield Console(log, terminal)
        finally:
            logging.getLogger().removeHandler(handler)


# --- Live lines -------------------------------------------------------------------------------------------------------


class LiveLines:
    """Shows the last line that each running notebook printed.

    On a terminal these lines are redrawn in place. Elsewhere a line is printed now and then, if it has changed.
    """

    def __init__(self, print_line: Callable[[str], None], seconds: float = 30.0) -> None:
        """print_line: prints a line that stays. seconds: between two lines of one notebook without a terminal."""
        self.print_line, self.seconds = print_line, seconds
        self.is_terminal = sys.stdout.isatty()
        self.lines_on_screen = 0
        self.last_prints: dict[str, tuple[float, str]] = {}  # notebook -> time and text of its last line

    def print_above(self, text: str) -> None:
        """Print a line that stays, above the live ones."""
        self._erase()
        self.print_line(text)

    def update(self, logs: Mapping[str, Path]) -> None:
        """Show the current last line of each log. logs: notebook -> its log file."""
        lines = {name: read_last_line(log) for name, log in logs.items()}
        if self.is_terminal:
            self._redraw(lines)
        else:
            self._print_changes(lines)

    def _redraw(self, lines: Mapping[str, str]) -> None:
        self._erase()
        width = os.get_terminal_size().columns - 1
        for name, line in lines.items():
            print(f"  {name}: {line}"[:width])
        self.lines_on_screen = len(lines)
        sys.stdout.flush()

    def _print_changes(self, lines: Mapping[str, str]) -> None:
        for name, line in lines.items():
            last_time, last_line = self.last_prints.get(name, (time.monotonic(), ""))
            if line != last_line and time.monotonic() - last_time >= self.seconds:
                self.print_line(f"  {name}: {line}")
                last_time, last_line = time.monotonic(), line
            self.last_prints[name] = last_time, last_line

    def _erase(self) -> None:
        if self.lines_on_screen:
            sys.stdout.write(f"\x1b[{self.lines_on_screen}A\x1b[J")  # cursor up, then clear to the end of the screen
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


def format_duration(minutes: float) -> str:
    """Return minutes as text, rounded like the estimate that they are."""
    if minutes < 1:
        return "under 1 min"
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
