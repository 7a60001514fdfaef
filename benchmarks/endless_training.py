"""Trainings without end, as gpu_speed.py measures them: the engine's step, captured or not, alone or side by side."""

import contextlib
import copy
import gc
import io
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
from training_speed import now

from fer_utils.device import choose_precision, set_seed
from fer_utils.training import TrainConfig
from fer_utils.training.optim import build_optimizer
from fer_utils.training.step import TrainingStep
from fer_utils.training.streams import CpuStream, CudaStream, open_stream
from fer_utils.training.tasks import classification


def capture(stream: CpuStream | CudaStream, step: TrainingStep, device: torch.device) -> tuple[Callable, float]:
    """A step (or something like it) captured by the engine, and the seconds that took with its warm-up.

    Raises RuntimeError where the engine could not capture it and fell back to the step itself.
    """
    printed = io.StringIO()
    start = now(device.type)
    with stream.active(), contextlib.redirect_stdout(printed):
        call = stream.capture(step)
    if call is step and printed.getvalue():
        raise RuntimeError(printed.getvalue().strip())
    return call, now(device.type) - start


class TrainingRun:
    """A training as `fit` makes it, with a stream of its own. After the last batch it begins the epoch anew."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        data: tuple[torch.Tensor, torch.Tensor],
        stream: CpuStream | CudaStream,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        """data: images (N,48,48) uint8 and labels (N,), on the device. wrap: torch.compile, or None."""
        self.stream, self.device, self.calls = stream, data[0].device, 0
        self.replay: Callable[[], None] | None = None
        self.capture_seconds = math.nan
        with stream.active():
            self.model = model.to(self.device, memory_format=torch.channels_last).train()
            self.step = TrainingStep(
                wrap(self.model) if wrap else self.model,
                None,
                build_optimizer(self.model, config),
                classification(config.label_smoothing),
                config,
                choose_precision(self.model, self.device),
                *data,
                torch.Generator(self.device).manual_seed(0),
            )
            self.step.begin_epoch(0)

    def capture(self) -> None:
        """Capture the step."""
        self.rewind()
        self.replay, self.capture_seconds = capture(self.stream, self.step, self.device)

    def rewind(self) -> None:
        """Go back to the first batch of the epoch."""
        with self.stream.active():
            self.step.position.zero_()
        self.calls = 0

    def advance(self, call: Callable[[], None]) -> None:
        """Queue the next step. call: `replay`, or `step` itself."""
        if self.calls == self.step.steps:
            self.rewind()
        with self.stream.active():
            call()
        self.calls += 1

    def launch_seconds(self) -> float:
        """Seconds that the CPU needs to launch a step, while the GPU has nothing else to do."""
        if self.calls == self.step.steps:
            self.rewind()
        with self.stream.active():
            start = now(self.device.type)
            self.replay()
            self.calls += 1
            return time.perf_counter() - start


class Group:
    """Trainings of one network, each with a stream of its own, to run side by side."""

    def __init__(
        self,
        build: Callable[[], nn.Module],
        config: TrainConfig,
        data: tuple[torch.Tensor, torch.Tensor],
        size: int,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        """build: makes a model. size: how many trainings there may be. The rest as in TrainingRun."""
        set_seed(0)
        self.config, self.data, self.wrap = config, data, wrap
        self.prototype = build()  # copies of it take less time than new networks
        # All streams are opened at once: PyTorch hands out 32 in turn, and neighbors never share one.
        self.streams = [open_stream(data[0].device) for _ in range(size)]
        self.runs: list[TrainingRun] = []

    def run(self, number: int) -> TrainingRun:
        """A training by its number; it and those before it are made when first asked for."""
        while len(self.runs) <= number:
            model, stream = copy.deepcopy(self.prototype), self.streams[len(self.runs)]
            self.runs.append(TrainingRun(model, self.config, self.data, stream, self.wrap))
        return self.runs[number]

    def captured(self, count: int) -> list[TrainingRun]:
        """The first trainings, captured."""
        runs = [self.run(number) for number in range(count)]
        for run in runs:
            if run.replay is None:
                run.capture()
        return runs

    def close(self) -> None:
        """Give back all memory."""
        for stream in self.streams:
            with contextlib.suppress(RuntimeError):  # after an error of the GPU, which has been reported
                stream.close()
        self.runs.clear()
        gc.collect()
        torch.cuda.empty_cache()


def seconds_in_threads(runs: list[TrainingRun], steps: int) -> float:
    """Seconds in which all trainings make that many steps of an epoch, each launched by a thread of its own.

    One thread launches the kernels of one training after those of another; several might do so at the same time.
    """
    device = runs[0].device.type

    def replay(run: TrainingRun) -> None:
        with torch.cuda.stream(run.stream.stream) if device == "cuda" else contextlib.nullcontext():
            for _ in range(steps):
                run.replay()

    for run in runs:
        run.rewind()
    start = now(device)
    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(replay, runs))
    seconds = now(device) - start
    for run in runs:
        run.rewind()
    return seconds


class InputSide:
    """The part of a training step that makes a batch; it can be captured as the whole can."""

    def __init__(self, step: TrainingStep) -> None:
        self.step, self.generator = step, step.generator

    def __call__(self) -> None:
        self.step.next_batch()

    def warm_up(self) -> None:
        """Call it once; only the generator changes by that."""
        self()
