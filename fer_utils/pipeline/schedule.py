"""Run several stages at once, each in a process of its own, and decide which stage starts next."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from fer_utils.pipeline.console import LiveLines, RunningStage, describe_start, format_duration
from fer_utils.pipeline.planning import PlannedStage, estimate_chains, estimate_total_minutes, measure_pace

DONE, FAILED, OUT_OF_TIME = "done", "failed", "out of time"
LEAST_MINUTES = 2.0  # a stage that can resume starts only when at least this much time is left


@dataclass(frozen=True)
class Outcome:
    """How a stage ended."""

    status: str  # DONE, FAILED or OUT_OF_TIME; the last means that the next run continues it
    text: str  # the message after the stage's name
    minutes: float = 0.0  # how long it took; 0 unless it ran to its end


def measure_pace_so_far(plan: Sequence[PlannedStage], outcomes: Mapping[str, Outcome]) -> float:
    """Return how many times as long as expected the stages took that have run to their end so far."""
    return measure_pace(plan, {name: outcome.minutes for name, outcome in outcomes.items() if outcome.minutes})


def explain_short_time(item: PlannedStage, deadline: float) -> str:
    """Say why the time left until the deadline is too short to start a stage; "" when it is enough.

    A stage that can resume need not finish in this run.
    """
    minutes_left = (deadline - time.time()) / 60
    minutes_needed = min(LEAST_MINUTES, item.minutes) if item.stage.resumes else item.minutes
    if minutes_needed <= minutes_left:
        return ""
    return f"it takes {format_duration(item.minutes)}, and {format_duration(max(0.0, minutes_left))} is left"


# --- Several at once --------------------------------------------------------------------------------------------------


@dataclass
class Worker:
    """A stage that runs in a process of its own."""

    item: PlannedStage
    process: BaseProcess
    connection: Connection  # delivers the stage's Outcome
    running: RunningStage


class ParallelRun:
    """Runs stages of a plan, up to `jobs` of them at once, each in a fork of this process."""

    def __init__(
        self,
        plan: Sequence[PlannedStage],
        jobs: int,
        run_stage: Callable[[PlannedStage, Path], Outcome],
        refuse: Callable[[PlannedStage, Mapping[str, Outcome]], Outcome | None],
        log_path: Callable[[str], Path],
        print_line: Callable[[str], None],
    ) -> None:
        """run_stage: runs one stage and writes what it prints to a log. log_path: stage -> that log.

        refuse: gets a stage and the outcomes so far, and returns an outcome if the stage must not start, else None.
        print_line: prints a message.
        """
        self.jobs, self.run_stage, self.refuse, self.log_path = jobs, run_stage, refuse, log_path
        self.plan, self.waiting, self.workers = plan, list(plan), []
        self.outcomes: dict[str, Outcome] = {}
        self.priority = estimate_chains(plan)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        self.threads = max(1, cores // jobs)  # of each kernel
        self.live_lines = LiveLines(print_line)

    def run(self) -> dict[str, Outcome]:
        """Run all stages; returns stage -> outcome. An interrupt stops all of them."""
        try:
            while self.waiting or self.workers:
                self._start_stages()
                wait([worker.connection for worker in self.workers], timeout=1)
                self._collect_outcomes()
                self.live_lines.update({worker.item.name: worker.running for worker in self.workers})
        finally:
            stop_workers(self.workers)
        return self.outcomes

    def _start_stages(self) -> None:
        """Start or refuse every stage whose needs are finished, the longest chain first, while jobs are free."""
        for item in sorted(self.waiting, key=lambda item: -self.priority[item.name]):
            unfinished = {other.name for other in self.waiting} | {worker.item.name for worker in self.workers}
            if len(self.workers) == self.jobs or item.stage.needs.keys() & unfinished:
                continue
            self.waiting.remove(item)
            refusal = self.refuse(item, self.outcomes)
            if refusal:
                self._finish(item, refusal)
            else:
                self._start(item)

    def _start(self, item: PlannedStage) -> None:
        pace = measure_pace_so_far(self.plan, self.outcomes)
        position = len(self.outcomes) + len(self.workers) + 1
        self.live_lines.print_above(
            describe_start(item, position, len(self.plan), pace, self.estimate_minutes_left(item, pace))
        )
        running = RunningStage(self.log_path(item.name), item.minutes * pace)
        self.workers.append(start_worker(item, self.run_stage, running, self.threads))

    def estimate_minutes_left(self, item: PlannedStage, pace: float) -> float:
        """Return the minutes until all stages are done, if `item` starts now."""
        started = [replace(worker.item, minutes=worker.running.minutes_left()) for worker in self.workers]
        later = [replace(other, minutes=other.minutes * pace) for other in [item, *self.waiting]]
        return estimate_total_minutes(started + later, self.jobs)

    def _collect_outcomes(self) -> None:
        for worker in list(self.workers):
            if worker.connection.poll() or not worker.process.is_alive():
                self.workers.remove(worker)
                self._finish(worker.item, receive_outcome(worker))

    def _finish(self, item: PlannedStage, outcome: Outcome) -> None:
        self.outcomes[item.name] = outcome
        self.live_lines.print_above(f"{item.name} {outcome.text}")


def start_worker(
    item: PlannedStage, run_stage: Callable[[PlannedStage, Path], Outcome], running: RunningStage, threads: int
) -> Worker:
    """Start a stage in a fork of this process. threads: how many its kernel computes with."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    parent = os.getpid()

    def work() -> None:
        threading.Thread(target=exit_with_parent, args=(parent,), daemon=True).start()
        os.environ["OMP_NUM_THREADS"] = str(threads)
        with contextlib.suppress(KeyboardInterrupt):
            sender.send(run_stage(item, running.log))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    sender.close()
    return Worker(item, process, receiver, running)


def exit_with_parent(parent: int) -> None:
    """End this process, and so its kernel, as soon as the process that started it is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def receive_outcome(worker: Worker) -> Outcome:
    """Return the outcome of a worker that sent it, or that died before it could."""
    with contextlib.suppress(EOFError):
        if worker.connection.poll():
            outcome = worker.connection.recv()
            worker.process.join()
            return outcome
    worker.process.join()
    return Outcome(
        FAILED, f"FAILED: its process died (exit code {worker.process.exitcode}). The log is {worker.running.log}"
    )


def stop_workers(workers: Sequence[Worker]) -> None:
    """Interrupt the workers that still run, as Ctrl-C does, and wait until their kernels are gone."""
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.process.pid, signal.SIGINT)
    for worker in workers:
        worker.process.join(20)
        worker.process.kill()
        worker.process.join()
