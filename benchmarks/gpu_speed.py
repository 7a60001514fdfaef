"""How fast one GPU trains every network: as a DataLoader loop, step by step, and as CUDA graphs, several at once.

    python benchmarks/gpu_speed.py
    python benchmarks/gpu_speed.py --seconds 300 --out outputs/gpu_speed

Four tables. gpu_networks: images per second of each network in all these ways, and what capturing costs. gpu_kernels:
the kernels that take most of the GPU's time. gpu_cudnn and gpu_compile: what cudnn.benchmark and torch.compile add.

It takes two minutes at most. What matters most comes first, for all networks; what no longer fits is skipped and named.
Each number is printed, and with --out written, as soon as it is measured, so a run that is cut short is useful. Images
are random unless --data names FER2013: speed does not depend on what they show. Without a GPU it prints its plan.
"""

import argparse
import contextlib
import functools
import math
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from endless_training import Group, InputSide, TrainingRun, capture, seconds_in_threads
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from training_speed import (
    TRAIN_IMAGES,
    Faces,
    cores,
    endless_loader,
    now,
    publish_tables,
    seconds_per_call,
    usual_loop,
    usual_seconds,
)

from fer_utils.data import FER2013, load_data
from fer_utils.device import device_name, select_device, set_seed
from fer_utils.models import build_model
from fer_utils.models.local_global import LocalGlobalNet
from fer_utils.models.resnet import STEMS
from fer_utils.paths import PROJECT_ROOT
from fer_utils.predict import outputs_on_device
from fer_utils.report import data_note, format_cell, to_markdown
from fer_utils.training import TrainConfig
from fer_utils.training.streams import open_stream

NAME = "gpu_speed"
NETWORKS, KERNELS, CUDNN, COMPILE = "gpu_networks", "gpu_kernels", "gpu_cudnn", "gpu_compile"
MOST_AT_ONCE = 6
TOP_KERNELS = 12
COLUMNS = {
    NETWORKS: [
        *("network", "batch", "precision", "DataLoader", "eager", "captured", "2 at once", "4 at once", "6 at once"),
        "4 at once, threads",
        *("times the DataLoader", "capture, s", "capture again, s", "launch, ms", "augmentation, %", "validation, %"),
        "problems",
    ],
    KERNELS: [
        *("network", "batch", "rank", "kernel", "calls per step", "share of GPU time, %", "us per call", "us per step"),
        "problems",
    ],
    CUDNN: [
        *("network", "batch", "captured", "captured, cudnn.benchmark", "capture, s", "capture, cudnn.benchmark, s"),
        "problems",
    ],
    COMPILE: ["network", "batch", "captured", "captured, compiled", "compile and capture, s", "problems"],
}
SPEED_AIMS = {  # images per second of all trainings that run at once
    "efficientnet_b0": 60_000,
    "resnet18, imagenet stem": 150_000,
    "resnet18, middle stem": 80_000,
    "baseline_cnn": 300_000,
}
TIMES_AIM = 8  # one captured training against the DataLoader
VALIDATION_AIM = 5  # % of an epoch


# --- What is measured -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A network and how it is trained."""

    name: str
    build: Callable[[], nn.Module]
    config: TrainConfig  # batch size and optimizer as in the notebook that trains it

    @property
    def label(self) -> str:
        return f"{self.name}, batch {self.config.batch_size}"


@dataclass(frozen=True)
class Pace:
    """How long to measure."""

    train: int = TRAIN_IMAGES  # random images to train on
    val: int = 3_589
    timed: float = 0.5  # seconds of work that a speed is taken from
    brief: float = 0.2  # the same for parts of a step
    calls: int = 5  # from which the length of one call is guessed
    profiled: int = 3  # steps
    workers: int = field(default_factory=lambda: max(1, cores()))  # of the DataLoader


QUICK = Pace(train=64, val=16, timed=0, brief=0, calls=1, profiled=1, workers=1)


def all_networks() -> list[Network]:
    """Every network that a notebook trains; those with an aim come first."""
    sgd, adamw = TrainConfig(), TrainConfig(optimizer="adamw", lr=0.001, weight_decay=0.05)
    tuned = replace(adamw, lr=0.01, weight_decay=0.1, clip=2.0, batch_size=64)  # notebook 06
    efficientnet = functools.partial(build_model, "efficientnet_b0")
    networks = [
        Network("baseline_cnn", functools.partial(build_model, "baseline_cnn"), sgd),
        *(
            Network(f"resnet18, {stem} stem", functools.partial(build_model, "resnet18", stem=stem), sgd)
            for stem in STEMS
        ),
        Network("efficientnet_b0", efficientnet, tuned),
        Network("efficientnet_b0", efficientnet, replace(tuned, batch_size=256)),
        Network("vgg16", functools.partial(build_model, "vgg16"), adamw),
        Network("local_global", LocalGlobalNet, replace(adamw, batch_size=32)),
    ]
    return sorted(networks, key=lambda network: network.name not in SPEED_AIMS)


def close_ups(networks: list[Network]) -> list[Network]:
    """The two networks that notebooks train longest, as they stand in the list."""
    names = ("resnet18, middle stem", "efficientnet_b0")
    return [next(network for network in networks if network.name == name) for name in names]


def with_batch(network: Network, batch_size: int) -> Network:
    """The same network, trained in batches of another size."""
    return replace(network, config=replace(network.config, batch_size=batch_size))


# --- Time and tables --------------------------------------------------------------------------------------------------


class OutOfTime(BaseException):
    """The time for all measurements is over. Not an Exception, so that no library takes it for an error of its own."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in what takes longer, as soon as Python gets a turn. Windows has no such alarm."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)


class Budget:
    """How much time is left, and what still fits into it."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds = time.monotonic(), seconds
        self.longest: dict[str, float] = {}  # kind of measurement -> seconds of the longest one

    def spent(self) -> float:
        return time.monotonic() - self.start

    def left(self) -> float:
        return self.seconds - self.spent()

    def fits(self, kind: str, guess: float) -> bool:
        """Whether one more of a kind fits, if it takes as long as the longest so far. guess: for the first."""
        return self.longest.get(kind, guess) <= self.left()

    def took(self, kind: str, seconds: float) -> None:
        """Remember how long a measurement was."""
        self.longest[kind] = max(seconds, self.longest.get(kind, 0))


class Tables:
    """The rows measured so far."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[tuple, dict]] = {name: {} for name in COLUMNS}

    def put(self, table: str, network: Network, cells: dict[str, object]) -> None:
        """Add cells to the row of a network, or of one of its kernels."""
        about = {"network": network.name, "batch": network.config.batch_size}
        row = self.rows[table].setdefault((network.label, cells.get("rank")), about)
        if "problems" in row and "problems" in cells:
            cells = {**cells, "problems": f"{row['problems']}; {cells['problems']}"}
        row |= cells

    def cell(self, table: str, network: Network, column: str) -> object:
        """What was measured; None if it was not."""
        return self.rows[table].get((network.label, None), {}).get(column)

    def frames(self) -> dict[str, pd.DataFrame]:
        """All tables that have rows."""
        frames = {}
        for table, rows in self.rows.items():
            if rows:
                frame = pd.DataFrame(list(rows.values())).reindex(columns=COLUMNS[table])
                if table == NETWORKS:
                    frame["times the DataLoader"] = frame["captured"] / frame["DataLoader"]
                frames[table] = frame.drop(columns="problems") if frame["problems"].isna().all() else frame
        return frames


# --- The measurements: each yields cells of a table as it finds them --------------------------------------------------


@dataclass
class Bench:
    """What all measurements share."""

    device: torch.device
    faces: FER2013
    pace: Pace
    budget: Budget
    write: Callable[["Bench"], None] = lambda _: None  # is called whenever there is something new
    tables: Tables = field(default_factory=Tables)
    groups: dict[str, Group] = field(default_factory=dict)  # label of a network -> its trainings
    skipped: list["Job"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.train, self.val = self.faces.subset("train"), self.faces.subset("val")
        self.train_tensors, self.val_tensors = (
            tuple(torch.as_tensor(array).to(self.device) for array in arrays) for arrays in (self.train, self.val)
        )

    def group(self, network: Network) -> Group:
        """The trainings of a network, which are kept from one measurement to the next."""
        if network.label not in self.groups:
            self.groups[network.label] = Group(network.build, network.config, self.train_tensors, MOST_AT_ONCE)
        return self.groups[network.label]

    def training(
        self, network: Network, wrap: Callable[[nn.Module], nn.Module] | None = None
    ) -> contextlib.closing[Group]:
        """One new training of a network, for a single measurement. wrap: as in TrainingRun."""
        return contextlib.closing(Group(network.build, network.config, self.train_tensors, 1, wrap))

    def drop(self, network: Network) -> None:
        """Forget the trainings of a network."""
        if network.label in self.groups:
            self.groups.pop(network.label).close()

    def is_short_of_memory(self) -> bool:
        """Whether more than half of the GPU's memory is taken: then nothing is kept."""
        if self.device.type == "cpu":
            return False
        free, total = torch.cuda.mem_get_info(self.device)
        return free < total / 2

    def steady_seconds(self, call: Callable[[], object], at_least: float) -> float:
        """Seconds per call, from as many calls in a row as take `at_least` seconds."""
        call()  # whatever happens at a first call
        guess = seconds_per_call(call, self.pace.calls, self.device.type)
        return seconds_per_call(call, max(self.pace.calls, math.ceil(at_least / guess)), self.device.type)

    def images_per_second(self, runs: list[TrainingRun]) -> int:
        """Speed of captured trainings that take turns, all together."""

        def step_of_each() -> None:
            for run in runs:
                run.advance(run.replay)

        return round(sum(run.step.batch_size for run in runs) / self.steady_seconds(step_of_each, self.pace.timed))

    def speed_alone(self, network: Network) -> int:
        """Images per second of one captured training, as measured before."""
        speed = self.tables.cell(NETWORKS, network, "captured")
        if speed is None:
            raise RuntimeError("it was not captured alone")
        return speed


def measure_captured(bench: Bench, network: Network) -> Iterator[dict]:
    """One captured training; what capturing took, and what a launch takes."""
    (run,) = bench.group(network).captured(1)
    yield {"precision": run.step.precision, "capture, s": run.capture_seconds}
    yield {"captured": bench.images_per_second([run])}
    yield {"launch, ms": 1000 * statistics.median(run.launch_seconds() for _ in range(2 * bench.pace.calls))}


def measure_eager(bench: Bench, network: Network) -> Iterator[dict]:
    """One training whose kernels are launched one by one."""
    run = bench.group(network).run(0)
    seconds = bench.steady_seconds(lambda: run.advance(run.step), bench.pace.timed)
    yield {"eager": round(run.step.batch_size / seconds)}


def measure_at_once(
    bench: Bench, network: Network, counts: tuple[int, ...], in_threads: bool = False
) -> Iterator[dict]:
    """Several captured trainings, side by side. in_threads: then also launched by a thread for each."""
    bench.speed_alone(network)
    for count in counts:
        runs = bench.group(network).captured(count)
        again = statistics.mean(run.capture_seconds for run in runs[1:])
        speed = bench.images_per_second(runs)
        yield {f"{count} at once": speed, "capture again, s": again}
        if in_threads:
            images = count * runs[0].step.batch_size
            steps = min(runs[0].step.steps, math.ceil(1 + bench.pace.timed * speed / images))
            yield {f"{count} at once, threads": round(images * steps / seconds_in_threads(runs, steps))}


def measure_shares(bench: Bench, network: Network) -> Iterator[dict]:
    """What making batches takes of a captured step, and validation of an epoch of such steps."""
    speed = bench.speed_alone(network)
    (run,) = bench.group(network).captured(1)
    run.rewind()  # the first batch is made again and again
    with contextlib.closing(open_stream(bench.device)) as stream:
        make_batch, _ = capture(stream, InputSide(run.step), bench.device)
        with stream.active():
            seconds = bench.steady_seconds(make_batch, bench.pace.brief)
    yield {"augmentation, %": 100 * seconds * speed / run.step.batch_size}
    images, labels = bench.val_tensors
    task = run.step.task

    @torch.inference_mode()
    def validate() -> None:
        with run.stream.active():
            outputs = outputs_on_device(run.model, images, bench.device, 2048, precision=run.step.precision)
            task.loss(outputs, labels), task.metric_fn(outputs, labels).mean()

    seconds = bench.steady_seconds(validate, bench.pace.brief)
    yield {"validation, %": 100 * seconds * speed / len(bench.train_tensors[0])}


def measure_dataloader(bench: Bench, network: Network) -> Iterator[dict]:
    """The usual training loop: PIL, torchvision's transforms, worker processes, fp32, `.item()` at every step."""
    set_seed(0)
    batch_size, workers = network.config.batch_size, bench.pace.workers
    loader = endless_loader(Faces(*bench.train), batch_size, bench.device.type, workers)
    step = usual_loop(network.build(), network.config, bench.device.type)
    yield {"DataLoader": round(batch_size / usual_seconds(step, loader, 2 * workers, bench.device.type))}


def measure_kernels(bench: Bench, network: Network) -> Iterator[dict]:
    """The most expensive kernels of a step. It is not captured for that: replays run the same kernels."""
    with bench.training(network) as group:
        run = group.run(0)
        for _ in range(2):
            run.advance(run.step)
        events = profile_steps(lambda: run.advance(run.step), bench.pace.profiled, bench.device)
    yield from kernel_rows(events, bench.pace.profiled, bench.device)


def profile_steps(step: Callable[[], None], steps: int, device: torch.device) -> Iterable:
    """What torch.profiler saw of some steps: kernels on a GPU, operators on a CPU."""
    # PyTorch's own way round a crash of captured graphs after profiling.
    os.environ.update(DISABLE_CUPTI_LAZY_REINIT="1", TEARDOWN_CUPTI="0")
    now(device.type)
    with profile(activities=[ProfilerActivity.CPU if device.type == "cpu" else ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        now(device.type)
    return profiler.key_averages()


def kernel_rows(events: Iterable, steps: int, device: torch.device) -> Iterator[dict]:
    """Rows of the kernels (on a CPU: operators) that take the most time."""
    kind = DeviceType.CPU if device.type == "cpu" else DeviceType.CUDA
    column = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    marks = ("Optimizer.", "ProfilerStep")  # ranges that PyTorch names, not kernels
    seen = [event for event in events if event.device_type == kind and not event.key.startswith(marks)]
    seen = sorted(((getattr(event, column), event) for event in seen), key=lambda pair: pair[0], reverse=True)
    total = sum(microseconds for microseconds, _ in seen)
    if not total:
        raise RuntimeError("the profiler saw no kernel")
    for rank, (microseconds, event) in enumerate(seen[:TOP_KERNELS], 1):
        yield {
            "rank": rank,
            "kernel": event.key.removeprefix("void ").replace("at::native::", "")[:80],
            "calls per step": event.count / steps,
            "share of GPU time, %": 100 * microseconds / total,
            "us per call": microseconds / event.count,
            "us per step": microseconds / steps,
        }


def captured_speed(
    bench: Bench, network: Network, wrap: Callable[[nn.Module], nn.Module] | None = None
) -> tuple[int, float]:
    """Images per second of a new training, alone, and the seconds to capture it."""
    with bench.training(network, wrap) as group:
        (run,) = group.captured(1)
        return bench.images_per_second([run]), run.capture_seconds


def measure_cudnn(bench: Bench, network: Network) -> Iterator[dict]:
    """One captured training, without and with cudnn.benchmark, which tries all algorithms for each convolution.

    The first is measured once more, so that both come after the profiler.
    """
    speed, seconds = captured_speed(bench, network)
    yield {"captured": speed, "capture, s": seconds}
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        speed, seconds = captured_speed(bench, network)
    finally:
        torch.backends.cudnn.benchmark = before
    yield {"captured, cudnn.benchmark": speed, "capture, cudnn.benchmark, s": seconds}


def measure_compiled(bench: Bench, network: Network) -> Iterator[dict]:
    """One captured training whose forward pass is compiled first."""
    yield {"captured": bench.tables.cell(CUDNN, network, "captured")}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:  # nothing compiled earlier may help
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        os.environ["TRITON_CACHE_DIR"] = str(Path(cache) / "triton")
        speed, seconds = captured_speed(bench, network, torch.compile)
    yield {"captured, compiled": speed, "compile and capture, s": seconds}


# --- In which order ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of measurement."""

    title: str
    table: str
    guess: float  # seconds it takes on a GPU, until one of its kind was measured
    measure: Callable[[Bench, Network], Iterator[dict]]
    is_last: bool = False  # whether nothing that follows needs the trainings of its network


KINDS = {
    "captured": Kind("captured, alone", NETWORKS, 3, measure_captured),
    "eager": Kind("eager", NETWORKS, 1, measure_eager),
    "4": Kind("4 at once", NETWORKS, 3, functools.partial(measure_at_once, counts=(4,), in_threads=True)),
    "shares": Kind("shares of augmentation and validation", NETWORKS, 1.5, measure_shares),
    "2, 6": Kind("2 and 6 at once", NETWORKS, 2.5, functools.partial(measure_at_once, counts=(2, MOST_AT_ONCE)), True),
    "DataLoader": Kind("DataLoader", NETWORKS, 2.5, measure_dataloader),
    "kernels": Kind("kernels", KERNELS, 4, measure_kernels),
    "cudnn": Kind("cudnn.benchmark", CUDNN, 8, measure_cudnn),
    "compile": Kind("torch.compile", COMPILE, 20, measure_compiled),
}


@dataclass(frozen=True)
class Job:
    """One kind of measurement of one network."""

    kind: str
    network: Network

    @property
    def label(self) -> str:
        return f"{self.network.label}: {KINDS[self.kind].title}"


def plan(networks: list[Network], profiled: list[Network], compared: list[Network]) -> list[Job]:
    """All measurements, those first that matter most, each for all networks."""
    phases = [("captured", "eager"), ("4",), ("shares",), ("2, 6",), ("DataLoader",)]
    jobs = [Job(kind, network) for phase in phases for network in networks for kind in phase]
    jobs += [Job("kernels", network) for network in profiled]
    return jobs + [Job(kind, network) for kind in ("cudnn", "compile") for network in compared]


def plan_text(jobs: list[Job], seconds: float) -> str:
    """The plan, printed where there is no GPU."""
    lines = [f"{number:3d}. {job.label}, {KINDS[job.kind].guess:g} s" for number, job in enumerate(jobs, 1)]
    total = sum(KINDS[job.kind].guess for job in jobs)
    return "\n".join(
        [
            "There is no GPU here, so nothing is measured. On a GPU these would be, in this order, with guessed times:",
            *lines,
            f"{total:.0f} s in all. What does not fit into --seconds {seconds:g} is skipped.",
        ]
    )


def do_all(bench: Bench, jobs: list[Job]) -> None:
    """Measure whatever fits into the time."""
    for job in jobs:
        if bench.budget.fits(job.kind, KINDS[job.kind].guess):
            do(bench, job)
        else:
            bench.skipped.append(job)


def do(bench: Bench, job: Job) -> None:
    """Measure, and put what is found into its table; where that fails, the reason."""
    start, kind = time.monotonic(), KINDS[job.kind]
    found: list[dict] = []
    try:
        problem = attempt(bench, job, found)
        if problem:
            found.append({"problems": f"{kind.title}: {problem}" if kind.table == NETWORKS else problem})
    finally:
        for cells in found:
            bench.tables.put(kind.table, job.network, cells)
        bench.write(bench)
    bench.budget.took(job.kind, time.monotonic() - start)
    if problem or kind.is_last or bench.is_short_of_memory():
        bench.drop(job.network)
    print(f"{bench.budget.spent():6.1f} s  {job.label}: {describe(found)}", flush=True)


def attempt(bench: Bench, job: Job, found: list[dict]) -> str:
    """Measure; returns why it failed, or "". By then the error is gone, and with it the memory it referred to."""
    try:
        with time_limit(bench.budget.left()):
            for cells in KINDS[job.kind].measure(bench, job.network):
                found.append(cells)
    except OutOfTime:
        return "the time was over"
    except Exception as error:  # whatever it is, the other networks go on
        lines = str(error).strip().splitlines() or [""]
        return "the time was over" if bench.budget.left() <= 0 else f"{type(error).__name__}: {lines[0]}"[:160]
    return ""


def describe(found: list[dict]) -> str:
    """What was found, in one line."""
    if found and "kernel" in found[0]:
        return f"most of the time in {found[0]['kernel']}"
    cells = {key: value for part in found for key, value in part.items()}
    return "; ".join(f"{key}: {format_cell(value, 2)}" for key, value in cells.items())


# --- What is said about it --------------------------------------------------------------------------------------------


def judge(frame: pd.DataFrame) -> list[str]:
    """Sentences that say which aims are met. frame: the table of networks."""
    at_once = ["captured", "2 at once", "4 at once", "6 at once"]
    sentences = []
    for name, aim in SPEED_AIMS.items():
        best = frame.loc[frame.network == name, at_once].max(axis=None)
        sentences.append(f"{name}: images/s in all {verdict(best, best >= aim)}, aim at least {aim:,}")
    for row in frame.to_dict("records"):
        label, times, share = row["network"], row["times the DataLoader"], row["validation, %"]
        label = f"{label}, batch {row['batch']}"
        sentences.append(
            f"{label}: times the DataLoader {verdict(times, times >= TIMES_AIM)}, aim at least {TIMES_AIM}"
        )
        share_verdict = verdict(share, share <= VALIDATION_AIM)
        sentences.append(f"{label}: validation, % of an epoch {share_verdict}, aim at most {VALIDATION_AIM}")
    return sentences


def verdict(value: float, is_met: bool) -> str:
    """A measured value and whether it is good enough."""
    return "not measured" if math.isnan(value) else f"{value:,.1f} ({'met' if is_met else 'MISSED'})"


def captions(bench: Bench) -> dict[str, str]:
    """The caption of every table."""
    pace, n = bench.pace, len(bench.train[0])
    what = f"{n:,} {'random ' if bench.faces.form == 'random' else ''}training images of 48x48"
    where = f"{device_name(bench.device)}, torch {torch.__version__}; n = {what}"
    return {
        NETWORKS: f"Images per second of training; {where}. DataLoader: PIL, torchvision, {pace.workers} workers, "
        f"fp32, {2 * pace.workers} steps timed. Eager: the engine's step, launched kernel by kernel. Captured: the "
        "same, replayed as a CUDA graph, one training alone or several at once, each on a stream of its own (images of "
        f"all together), launched by one thread or by one for each. These from at least {pace.timed:g} s of work. "
        "Times the DataLoader: captured, alone. Capture: seconds with warm-up, of the first training (the first "
        "network also pays for what CUDA loads once) and the mean of further ones. Launch: CPU time of one replay. "
        "Augmentation: cutting and augmenting batches alone, "
        f"share of a captured step. Validation: of {len(bench.val[0]):,} images, share of a captured epoch.",
        KERNELS: f"The {TOP_KERNELS} kernels that take most of the GPU's time in a training step; {where}. From "
        f"torch.profiler, {pace.profiled} steps, launched kernel by kernel.",
        CUDNN: f"Images per second of one captured training and seconds to capture it, without and with "
        f"cudnn.benchmark; {where}.",
        COMPILE: f"Images per second of one captured training, without and with torch.compile of its forward pass; "
        f"{where}.",
    }


def summary(bench: Bench) -> str:
    """All tables, the aims, and what was skipped."""
    frames, about = bench.tables.frames(), captions(bench)
    parts = [
        f"{name}: {' '.join(filter(None, [about[name], data_note(bench.faces)]))}\n\n{to_markdown(frame, 2)}"
        for name, frame in frames.items()
    ]
    if bench.skipped:
        parts.append("Skipped for lack of time: " + "; ".join(job.label for job in bench.skipped) + ".")
    if NETWORKS in frames:
        parts.append("\n".join(judge(frames[NETWORKS])))
    return "\n\n".join([*parts, f"{bench.budget.spent():.0f} seconds in all"])


def publish_bench(bench: Bench, out: Path, profile: str) -> None:
    """Publish what has been measured so far. profile: what kind of run it is, as the pipeline calls it."""
    about = captions(bench)
    tables = {name: (frame, about[name]) for name, frame in bench.tables.frames().items()}
    publish_tables(tables, bench.faces, profile, device_name(bench.device), out, NAME)


def random_faces(train: int, val: int) -> FER2013:
    """Noise in the form of FER2013, without a test split."""
    rng = np.random.default_rng(0)
    return FER2013(
        images=rng.integers(0, 256, (train + val, 48, 48), dtype=np.uint8),
        labels=rng.integers(0, 7, train + val),
        split_ids=np.repeat(np.array([0, 1], np.int8), [train, val]),
        names=np.array([f"row {i}" for i in range(train + val)]),
        form="random",
        fingerprint="0" * 16,
        notes=(),
        standard=True,  # the captions say what it is
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="path of FER2013 (default: random images)")
    parser.add_argument("--seconds", type=float, default=120, help="for everything once Python has started (120)")
    parser.add_argument("--out", type=Path, help="folder to publish to, such as reports (default: print only)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)  # a tiny run, to see that it works
    options = parser.parse_args()
    budget, device = Budget(options.seconds), select_device(options.device)
    networks = [with_batch(network, 4) for network in all_networks() if network.name == "baseline_cnn"]
    profiled = compared = networks
    if not options.quick:
        networks = all_networks()
        profiled = compared = close_ups(networks)
        profiled = [with_batch(profiled[0], 256), profiled[1]]
    jobs = plan(networks, profiled, compared)
    if device.type == "cpu" and not options.quick:
        print(plan_text(jobs, options.seconds))
        return
    pace = QUICK if options.quick else Pace()
    faces = load_data(options.data) if options.data else random_faces(pace.train, pace.val)
    largest = max(job.network.config.batch_size for job in jobs)
    if len(faces.where("train")) < 4 * largest:
        parser.error(f"{options.data} has too few training images for batches of {largest}; leave out --data")
    out = options.out and options.out.resolve()
    if (options.quick or not faces.standard) and out == PROJECT_ROOT / "reports":
        parser.error("reports/ holds full runs only; leave out --quick, give FER2013, or choose another --out")
    bench = Bench(device, faces, pace, budget)
    if out:
        kind_of_run = "full" if device.type == "cuda" and not options.quick else "sample"
        bench.write = functools.partial(publish_bench, out=out, profile=kind_of_run)
    try:
        do_all(bench, jobs)
    finally:
        print(f"\n{summary(bench)}")


if __name__ == "__main__":
    main()
