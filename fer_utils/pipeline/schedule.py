"""Which stages run when: one after another, or several at once in processes of their own; and until when."""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from fer_utils.pipeline.planning import Planned, chain_lengths, duration

DONE, FAILED, STOPPED = "done", "failed", "stopped"
LEAST_MINUTES = 2.0  # a stage that can resume is started when at least this much time is left


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: DONE, FAILED or STOPPED (out of time: it goes on with the next run), and what to say of it."""

    status: str
    text: str


def cannot_finish(planned: Planned, deadline: float) -> str:
    """Why a stage is not started with the time that is left; "" when it is. What can resume needs not finish."""
    left = (deadline - time.time()) / 60
    needed = min(LEAST_MINUTES, planned.minutes) if planned.stage.resumes else planned.minutes
    return "" if needed <= left else f"it takes {duration(planned.minutes)}, and {duration(max(0.0, left))} is left"


def names(plan: Sequence[Planned]) -> set[str]:
    """The names of the stages of a plan."""
    return {planned.stage.name for planned in plan}


# --- Several at once --------------------------------------------------------------------------------------------------


@dataclass
class Child:
    """A stage that runs in a process of its own."""

    planned: Planned
    process: BaseProcess
    outcome: Connection
    log: Path


def run_together(
    waiting: Sequence[Planned],
    jobs: int,
    attempt: Callable[[Planned, Path], Outcome],
    may_start: Callable[[Planned, Mapping[str, Outcome]], Outcome | None],
    log_of: Callable[[str], Path],
    say: Callable[[str], None],
) -> dict[str, Outcome]:
    """Run stages, `jobs` at once, each in a fork of this process; returns how each ended.

    attempt: runs one stage, writing what it prints to a log. may_start: the outcome of a stage that is not to be
    started, else None. say: prints a line. An interrupt ends all of them.
    """
    ended: dict[str, Outcome] = {}
    running: list[Child] = []
    left, rank = list(waiting), chain_lengths(waiting)
    cores = max(1, len(os.sched_getaffinity(0)) // jobs) if hasattr(os, "sched_getaffinity") else 1
    board = Board(say)
    try:
        while left or running:
            for planned in sorted(left, key=lambda p: -rank[p.stage.name]):
                needs_unfinished = planned.stage.needs.keys() & (names(left) | {c.planned.stage.name for c in running})
                if len(running) == jobs or needs_unfinished:
                    continue
                left.remove(planned)
                refused = may_start(planned, ended)
                if refused:
                    ended[planned.stage.name] = refused
                    board.say(f"{planned.stage.name} {refused.text}")
                else:
                    board.say(f"{planned.stage.name} starts ({duration(planned.minutes)} expected)")
                    running.append(start_child(planned, attempt, log_of(planned.stage.name), cores))
            wait([child.outcome for child in running], timeout=1)
            for child in [child for child in running if child.outcome.poll() or not child.process.is_alive()]:
                running.remove(child)
                ended[child.planned.stage.name] = result = finish_child(child)
                board.say(f"{child.planned.stage.name} {result.text}")
            board.show({child.planned.stage.name: child.log for child in running})
    finally:
        end_children(running)
    return ended


def start_child(planned: Planned, attempt: Callable[[Planned, Path], Outcome], log: Path, cores: int) -> Child:
    """Start a stage in a fork of this process, whose kernel computes with that many threads."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    parent = os.getpid()

    def work() -> None:
        threading.Thread(target=end_with, args=(parent,), daemon=True).start()
        os.environ["OMP_NUM_THREADS"] = str(cores)
        with contextlib.suppress(KeyboardInterrupt):
            sender.send(attempt(planned, log))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    sender.close()
    return Child(planned, process, receiver, log)


def end_with(parent: int) -> None:
    """End this process, and with it its kernel, once the process that started it has been killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def finish_child(child: Child) -> Outcome:
    """How a stage has ended whose process has answered, or died."""
    with contextlib.suppress(EOFError):
        if child.outcome.poll():
            result = child.outcome.recv()
            child.process.join()
            return result
    child.process.join()
    return Outcome(FAILED, f"FAILED: its process died (exit code {child.process.exitcode}); its log is {child.log}")


def end_children(running: Sequence[Child]) -> None:
    """Interrupt what still runs, as Ctrl-C does, and wait until kernels are gone."""
    for child in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.process.pid, signal.SIGINT)
    for child in running:
        child.process.join(20)
        child.process.kill()
        child.process.join()


class Board:
    """A line for each running notebook: live on a terminal, elsewhere now and then when it has changed."""

    def __init__(self, say: Callable[[str], None], seconds: float = 30.0) -> None:
        """say: prints a line that stays. seconds: between two lines about the same notebook, where nothing is live."""
        self.write, self.seconds = say, seconds
        self.live = sys.stdout.isatty()
        self.drawn = 0
        self.told: dict[str, tuple[float, str]] = {}

    def say(self, text: str) -> None:
        """A line that stays, above the live ones."""
        self._erase()
        self.write(text)

    def show(self, logs: Mapping[str, Path]) -> None:
        """The last line that each running notebook has printed."""
        lines = {name: last_line(log) for name, log in logs.items()}
        if self.live:
            self._erase()
            width = os.get_terminal_size().columns - 1
            for name, line in lines.items():
                print(f"  {name}: {line}"[:width])
            self.drawn = len(lines)
            sys.stdout.flush()
            return
        for name, line in lines.items():
            when, before = self.told.get(name, (time.monotonic(), ""))
            if line != before and time.monotonic() - when >= self.seconds:
                self.write(f"  {name}: {line}")
                when, before = time.monotonic(), line
            self.told[name] = when, before

    def _erase(self) -> None:
        if self.drawn:
            sys.stdout.write(f"\x1b[{self.drawn}A\x1b[J")
            self.drawn = 0


def last_line(log: Path, most: int = 4096) -> str:
    """The last line in a log that is not blank, without control characters; "" when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - most))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    printed = (re.sub(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f]", "", line).strip() for line in reversed(lines))
    return next(filter(None, printed), "")
