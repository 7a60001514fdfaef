"""Several notebooks at once, and a run that ends in time: the order, the processes, and what the next run finds."""

import contextlib
import inspect
import io
import os
import signal
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from helpers import toy_faces
from test_pipeline import BEGIN, Project, cell, is_gone, make_project, wait_for

from fer_utils.device import set_seed
from fer_utils.pipeline import console, execution, planning, runner, schedule
from fer_utils.pipeline.console import LiveLines, RunningStage, read_last_line
from fer_utils.pipeline.lock import project_lock
from fer_utils.pipeline.notebooks import UsageError
from fer_utils.pipeline.planning import PlannedStage
from fer_utils.pipeline.publish import Folders, publish, remove_leftovers
from fer_utils.pipeline.schedule import DONE, FAILED, Outcome, ParallelRun
from fer_utils.pipeline.stages import Stage
from fer_utils.training import Run, TrainConfig, fit, fit_all
from fer_utils.training.loop import DEADLINE, OutOfTime

# ---- The plan ----


def planned(name: str, minutes: float, *needs: str, resumes: bool = False) -> PlannedStage:
    stage = Stage(name, (), dict.fromkeys(("sample", "cpu", "full"), minutes), {n: () for n in needs}, resumes=resumes)
    return PlannedStage(stage, ["first run"], minutes)


DIAMOND = [
    planned("01_a", 2),
    planned("02_b", 9, "01_a"),
    planned("03_c", 3, "01_a"),
    planned("04_d", 1, "02_b", "03_c"),
]


def test_the_longest_chain_is_what_no_number_of_jobs_shortens():
    assert planning.find_longest_chain(DIAMOND) == ["01_a", "02_b", "04_d"]
    assert planning.estimate_chains(DIAMOND) == {"04_d": 1, "03_c": 4, "02_b": 10, "01_a": 12}


@pytest.mark.parametrize("jobs, minutes", [(1, 15), (2, 12), (9, 12)])
def test_expected_time(jobs, minutes):
    assert planning.estimate_total_minutes(DIAMOND, jobs) == minutes


def test_expected_time_of_what_is_independent():
    plan = [planned(f"0{i}_x", minutes) for i, minutes in enumerate((5, 1, 4, 3), 1)]
    assert [planning.estimate_total_minutes(plan, jobs) for jobs in (1, 2, 3)] == [13, 7, 5]  # the longest first


def test_the_plan_says_when_it_ends_and_what_takes_longest():
    assert console.describe_time([], 2) == "Nothing to do: all is up to date."
    assert console.describe_time(DIAMOND, 1).startswith("Expected time: 15 min, until ")
    text = console.describe_time(DIAMOND, 2)
    assert text.startswith("Expected time with 2 notebooks at once: 12 min, until ") and text.endswith(
        "01 -> 02 -> 04 (12 min)."
    )


@pytest.mark.parametrize(
    "minutes, resumes, left, is_started",
    [(5, False, 6, True), (5, False, 4, False), (500, True, 4, True), (500, True, 1, False), (0.5, True, 1, True)],
)
def test_what_cannot_finish_is_not_started_unless_it_can_resume(minutes, resumes, left, is_started):
    reason = schedule.explain_short_time(planned("01_a", minutes, resumes=resumes), time.time() + 60 * left)
    assert (reason == "") == is_started and ("is left" in reason) == (not is_started)


# ---- Several at once ----


def find_workers() -> list[psutil.Process]:
    """The forks of this process in which stages run; a fork has the command line of its parent."""
    here = psutil.Process()
    return [child for child in here.children() if not is_gone(child) and child.cmdline() == here.cmdline()]


class Trace:
    """Stand-ins for notebooks: each notes when it starts and ends.

    meets: pairs that wait for each other, so that they are seen to run at once on a busy machine as well.
    """

    def __init__(self, folder: Path, seconds: float = 0.3, meets: Iterable[tuple[str, str]] = ()) -> None:
        self.folder, self.seconds, self.lines = folder, seconds, []
        self.partner = {name: other for pair in meets for name, other in (pair, reversed(pair))}

    def run_stage(self, item: PlannedStage, log: Path) -> Outcome:
        name = item.name
        log.write_text(f"{name} trains\n")
        (self.folder / f"{name}.start").write_text(f"{time.monotonic()} {os.environ['OMP_NUM_THREADS']}")
        wait_for((self.folder / f"{self.partner.get(name, name)}.start").exists)
        time.sleep(self.seconds)
        (self.folder / f"{name}.end").write_text(str(time.monotonic()))
        if name.endswith("bad"):
            return Outcome(FAILED, "FAILED at its end")
        if name.endswith("killed"):
            os._exit(7)
        return Outcome(DONE, "is done")

    def run(self, plan: list[PlannedStage], jobs: int = 2) -> dict[str, Outcome]:
        def refuse(item, outcomes):
            missing = [need for need in item.stage.needs if outcomes[need].status != DONE]
            return Outcome(FAILED, f"is skipped: it needs {missing[0]}") if missing else None

        def log_path(name):
            return self.folder / f"{name}.log"

        return ParallelRun(plan, jobs, self.run_stage, refuse, log_path, self.lines.append).run()

    def time(self, event: str) -> float:
        return float((self.folder / event).read_text().split()[0])


def test_what_needs_nothing_of_each_other_runs_at_once_and_the_rest_in_order(tmp_path):
    trace = Trace(tmp_path, meets=[("02_b", "03_c")])
    assert {outcome.status for outcome in trace.run(DIAMOND).values()} == {DONE}
    for first, then in (("01_a", "02_b"), ("01_a", "03_c"), ("02_b", "04_d"), ("03_c", "04_d")):
        assert trace.time(f"{first}.end") <= trace.time(f"{then}.start")
    assert trace.time("03_c.start") < trace.time("02_b.end") and trace.time("02_b.start") < trace.time("03_c.end")
    assert "01_a starts" in trace.lines[0] and trace.lines[-1] == "04_d is done"


def test_no_more_than_jobs_run_at_once_and_share_the_cores(tmp_path):
    trace = Trace(tmp_path, meets=[("01_x", "02_x"), ("03_x", "04_x")])
    names = [f"0{i}_x" for i in range(1, 5)]
    trace.run([planned(name, 1) for name in names])
    spans = [(trace.time(f"{name}.start"), trace.time(f"{name}.end")) for name in names]
    assert max(sum(start <= moment < end for start, end in spans) for moment, _ in spans) == 2
    threads = (tmp_path / "01_x.start").read_text().split()[1]
    assert int(threads) == max(1, len(os.sched_getaffinity(0)) // 2)


@pytest.mark.parametrize(
    "ending, message", [("bad", "FAILED at its end"), ("killed", "its process died (exit code 7)")]
)
def test_one_that_fails_leaves_the_others_alone(tmp_path, ending, message):
    trace = Trace(tmp_path)
    bad = f"01_{ending}"
    outcomes = trace.run([planned(bad, 1), planned("02_good", 1), planned("03_needs", 1, bad), planned("04_free", 1)])
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        bad: FAILED, "02_good": DONE, "03_needs": FAILED, "04_free": DONE
    }  # fmt: skip
    assert message in outcomes[bad].text and outcomes["03_needs"].text == f"is skipped: it needs {bad}"
    assert not (tmp_path / "03_needs.start").exists()


def test_an_interrupt_ends_all_of_them(tmp_path):
    trace = Trace(tmp_path, seconds=60)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.5)
        with pytest.raises(KeyboardInterrupt):
            trace.run([planned("01_x", 1), planned("02_x", 1)])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (tmp_path / "02_x.start").exists() and not (tmp_path / "02_x.end").exists()
    assert not find_workers()


def test_the_last_line_is_what_a_reader_would_see(tmp_path):
    log = tmp_path / "a.log"
    assert read_last_line(log) == ""
    log.write_bytes(b"first\n\x1b[31mepoch 3/9\x1b[0m  val 40 %\r\n\n  \n")
    assert read_last_line(log) == "epoch 3/9  val 40 %"
    log.write_bytes(b"x" * 10_000 + b"\xff\n")
    assert 4000 < len(read_last_line(log)) < 4200


def test_without_a_terminal_a_line_appears_now_and_then_for_a_new_epoch(tmp_path):
    log, lines = tmp_path / "04.log", []
    live_lines, running = LiveLines(lines.append, seconds=0.2), {"04": RunningStage(log, 22.0)}
    for text in ("epoch  1/9", "epoch  2/9  val 40 %", "epoch  2/9  val 40 %"):
        log.write_text(text)
        live_lines.update(running)
        time.sleep(0.15)
    live_lines.update(running)
    time.sleep(0.25)
    log.write_text("| a | table |")
    live_lines.update(running)
    assert lines == ["  04  0:00 of ~22 min  epoch 2/9  val 40 %"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_every_notebook_has_one_line_that_is_redrawn(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "get_terminal_size", lambda: os.terminal_size((40, 20)))
    log, terminal = tmp_path / "04.log", Terminal()
    log.write_text("a long name of a run: epoch   1/9  loss 1.61  train 42 %  val 40.1 %  9.8 s  left 80 s")
    with contextlib.redirect_stdout(terminal):
        live_lines, running = LiveLines(print), {"04": RunningStage(log, 0.5)}
        live_lines.update(running)
        log.write_text("| a | table |")
        live_lines.update(running)
        live_lines.print_above("04 is done")
    first, second = "  04  0:00 of ~1 min  epoch 1/9  val 40\n", "  04  0:00 of ~1 min\n"
    assert terminal.getvalue() == f"{first}\x1b[1A\x1b[J{second}\x1b[1A\x1b[J04 is done\n"


def test_a_notebook_is_followed_while_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "get_terminal_size", lambda: os.terminal_size((60, 20)))
    (tmp_path / "04.log").write_text("epoch 1/9")
    terminal = Terminal()
    with contextlib.redirect_stdout(terminal):
        live_lines = LiveLines(print)
    with live_lines.follow("04", RunningStage(tmp_path / "04.log", 22.0)):
        wait_for(lambda: "epoch 1/9" in terminal.getvalue(), seconds=10)


def test_time_left_follows_what_the_stages_took_so_far():
    assert planning.measure_pace(DIAMOND, {}) == 1.0
    assert planning.measure_pace(DIAMOND, {"01_a": 6.0, "03_c": 9.0}) == 3.0
    outcomes = {"01_a": Outcome(DONE, "is done", 6.0), "03_c": Outcome(DONE, "is up to date after all")}
    assert schedule.measure_pace_so_far(DIAMOND, outcomes) == 3.0
    run = ParallelRun(DIAMOND, 2, None, None, None, None)
    run.waiting = DIAMOND[2:]
    run.workers = [schedule.Worker(DIAMOND[1], None, None, RunningStage(Path(), 27.0))]
    assert run.estimate_minutes_left(DIAMOND[2], pace=3.0) == pytest.approx(30, abs=0.1)
    text = console.describe_start(DIAMOND[2], 3, 4, 3.0, 30.0)
    assert text == "[3/4] 03_c starts (9 min expected; time left for all: 30 min)"


# ---- With kernels ----

MINUTES = {"sample": 0.1, "cpu": 0.1, "full": 0.1}


def write(name: str) -> str:
    return f"{BEGIN}\nprint('working')\nwrite('tables/{name}.csv', 'n\\n1\\n')"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Two notebooks that need nothing, and one that needs both."""
    project = Project(tmp_path / "two at once", has_kernels=True)
    stages = [Stage(name, (f"tables/{name}.csv",), MINUTES) for name in ("01_a", "02_b")]
    needs = {"01_a": ("tables/01_a.csv",), "02_b": ("tables/02_b.csv",)}
    project.stages = (*stages, Stage("03_c", ("tables/03_c.csv",), MINUTES, needs))
    for stage in project.stages:
        project.write_notebook(stage.name, cell(write(stage.name)))
    (project.root / "fer_utils").mkdir()
    (project.root / "fer_utils" / "__init__.py").write_text("")
    return project


def test_two_jobs_publish_what_one_would(project, capsys):
    assert project.run("--jobs", "2") == 0
    output = capsys.readouterr().out
    assert "Expected time with 2 notebooks at once: under 1 min" in output and output.index(
        "02_b starts"
    ) < output.index("01_a is done")
    assert {f"reports/tables/{stage.name}.csv" for stage in project.stages} <= project.published().keys()
    assert (project.root / "outputs/work/cpu/01_a.log").read_text().count("working") == 1
    assert "working" not in output  # it is in the log
    assert project.run("--jobs", "2") == 0
    assert "Nothing to do" in capsys.readouterr().out


def test_two_jobs_with_one_that_fails(project, capsys):
    project.has_kernels = False
    project.write_notebook("01_a", cell(BEGIN))  # it writes no table
    assert project.run("--jobs", "2") == 1
    output = capsys.readouterr().out
    assert "01_a FAILED at its end" in output and "03_c is skipped: it needs 01_a" in output
    assert "FAILED or skipped: 01_a, 03_c." in output and "reports/tables/02_b.csv" in project.published()


def test_a_stage_that_publishes_leaves_alone_what_another_is_writing(tmp_path):
    folders = Folders(tmp_path, tmp_path / "work", tmp_path / "outputs", tmp_path / "reports")
    for file in (folders.staging("01_a") / "tables/01_a.csv", half := folders.reports / "tables/.02_b.csv.7.tmp"):
        file.parent.mkdir(parents=True)
        file.write_text("x")
    publish("01_a", folders, earlier=())
    assert half.exists() and (folders.reports / "tables/01_a.csv").exists()
    remove_leftovers(folders)  # when a run begins
    assert not half.exists() and (folders.reports / "tables/01_a.csv").exists()


TRAINS = """
import time
for epoch in range(1, 1500):
    write("training/epochs.txt", str(epoch))
    time.sleep(0.1)
    if Path("../enough.txt").exists():
        break
"""


def let_time_run_out(project):
    """Send the alarm of the deadline to the process of 01_a as soon as that trains and 02_b is published."""
    epochs = project.root / "outputs/work/cpu/01_a/training/epochs.txt"
    is_published = (project.root / "reports/manifests/02_b.json").exists
    wait_for(lambda: epochs.exists() and is_published() and len(find_workers()) == 1, seconds=200)
    os.kill(find_workers()[0].pid, signal.SIGALRM)


def test_the_alarm_comes_at_the_deadline():
    with pytest.raises(execution.TimeIsUp), execution.time_limit(time.time() + 0.1):
        time.sleep(10)
    with execution.time_limit(float("inf")), execution.time_limit(time.time() + 100):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_run_ends_in_time_and_the_next_goes_on(project, capsys):
    project.stages = (replace(project.stages[0], resumes=True), *project.stages[1:])
    project.write_notebook("01_a", cell(BEGIN + TRAINS), cell(write("01_a")))
    clock = threading.Thread(target=let_time_run_out, args=(project,))
    clock.start()
    assert project.run("--minutes", "10", "--jobs", "2") == 3
    clock.join()
    output = capsys.readouterr().out
    assert "01_a is stopped: the time is up" in output and "02_b is done" in output
    assert "Out of time. Left to do: 01_a, 03_c. The next ./run_all.sh continues from here." in output
    assert (project.root / "outputs/work/cpu/01_a/training/epochs.txt").exists()
    assert not [p for p in psutil.Process().children(recursive=True) if "ipykernel" in " ".join(p.cmdline())]
    (project.root / "enough.txt").write_text("")
    project.has_kernels = False
    assert project.run() == 0
    assert "resumes its training" in capsys.readouterr().out


def test_a_notebook_that_stops_its_training_in_time_has_not_failed(project, capsys):
    project.write_notebook("01_a", cell("class OutOfTime(Exception): pass\nraise OutOfTime('after epoch 3')"))
    assert project.run("--minutes", "5", "--only", "01") == 3
    assert "Left to do: 01_a" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--jobs", "0"], "0 is not a number of at least 1"),
        (["--jobs", "two"], "invalid whole number value"),
        (["--minutes", "0"], "0 is not a number of at least 0.1"),
        (["--minutes", "nan"], "nan is not a number"),
        (["--minutes", "inf"], "inf is not a number"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(project, capsys, argv, message):
    with pytest.raises(SystemExit) as stopped:
        project.run(*argv)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


SLEEPS = """
import os, pathlib, time
pathlib.Path("../kernel.pid").write_text(str(os.getpid()))
time.sleep(300)
"""


def test_children_of_a_killed_run_end_as_well(tmp_path):
    project = make_project(tmp_path / "killed", has_kernels=True)
    project.write_notebook("01_count", cell(SLEEPS))
    process = project.start(argv=("--jobs", "2"))
    pid = project.root / "kernel.pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    kernel = psutil.Process(int(pid.read_text()))
    process.kill()
    process.communicate()
    wait_for(lambda: is_gone(kernel), seconds=20)
    wait_for(lambda: can_lock(project.root), seconds=20)


def can_lock(root: Path) -> bool:
    with contextlib.suppress(UsageError), project_lock(root):
        return True
    return False


# ---- Training ----

TRAIN, VAL = toy_faces(64, 0), toy_faces(40, 1)
CONFIG = TrainConfig(epochs=3, batch_size=32, precision="fp32")


def new_run(checkpoint: Path | None, seed: int = 0) -> Run:
    set_seed(seed)
    layers = torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(2304, 7)
    return Run(torch.nn.Sequential(*layers), TRAIN, VAL, replace(CONFIG, seed=seed), checkpoint, name=f"seed {seed}")


def test_training_stops_after_an_epoch_and_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch):
    whole = new_run(None)
    expected = fit(whole.model, TRAIN, VAL, CONFIG).history.drop(columns="seconds")
    file = tmp_path / "run.pt"

    def time_is_up(row):
        monkeypatch.setenv("FER_DEADLINE", str(time.time()))

    with pytest.raises(OutOfTime, match="stopped after epoch 1 of 3, because the time is up"):
        fit(new_run(None).model, TRAIN, VAL, CONFIG, checkpoint=file, on_epoch=time_is_up)
    with pytest.raises(OutOfTime, match="after epoch 1 of 3"):  # the time is still up
        fit(new_run(None).model, TRAIN, VAL, CONFIG, checkpoint=file)
    monkeypatch.delenv("FER_DEADLINE")
    resumed = new_run(None)
    assert fit(resumed.model, TRAIN, VAL, CONFIG, checkpoint=file).history.drop(columns="seconds").equals(expected)
    assert all(map(torch.equal, whole.model.state_dict().values(), resumed.model.state_dict().values()))


def test_runner_and_training_speak_of_the_same_deadline():
    """The runner does not import torch, so it has these names of its own."""
    assert runner.DEADLINE == DEADLINE
    assert f'"ename", "") == "{OutOfTime.__name__}"' in inspect.getsource(execution.run_notebook)


def test_an_epoch_that_would_end_too_late_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_DEADLINE", str(time.time() + 3))
    seen = []
    with pytest.raises(OutOfTime, match="after epoch 1 of 3"):
        fit(new_run(None).model, TRAIN, VAL, CONFIG, checkpoint=tmp_path / "run.pt",
            on_epoch=lambda row: seen.append(row) or time.sleep(2))  # fmt: skip
    assert len(seen) == 1


def test_without_a_checkpoint_training_goes_on(monkeypatch):
    monkeypatch.setenv("FER_DEADLINE", str(time.time() - 1))
    assert len(fit(new_run(None).model, TRAIN, VAL, CONFIG).history) == 3


def test_of_several_runs_none_begins_when_the_time_is_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FER_DEADLINE", str(time.time() - 1))
    with pytest.raises(OutOfTime):
        fit_all([new_run(tmp_path / f"{seed}.pt", seed) for seed in range(3)])
    assert capsys.readouterr().out.count("stopped after epoch 0 of 3") == 3
    assert np.all([not (tmp_path / f"{seed}.pt").exists() for seed in range(3)])
