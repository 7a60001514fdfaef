"""Streams: a run works on the CPU directly, or puts its work into its own queue on a GPU.

Launching a kernel from Python often takes longer than the kernel itself. A CUDA graph holds all kernels of a step and
replays them with one launch. One small network does not use a whole GPU, but several at the same time do. Every run
therefore has its own stream.
"""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fer_utils.training.step import TrainingStep


class CpuStream:
    """The stream of a CPU: work is done when a call returns, so there is nothing to capture or to wait for."""

    def active(self) -> contextlib.AbstractContextManager:
        """Return a context in which work goes to this stream."""
        return contextlib.nullcontext()

    def record_event(self) -> Any:
        """Mark a point between two pieces of work; returns the time in seconds."""
        return time.perf_counter()

    def is_done(self, event: float) -> bool:
        """Check whether all work before the event is done."""
        return True

    def seconds(self, start: float, end: float) -> float:
        """Return the seconds between two events; both must be done."""
        return end - start

    def capture(self, step: TrainingStep) -> Callable[[], None]:
        """Return the step itself."""
        return step

    def rng_state(self) -> dict[str, Any]:
        """Return the state of the random generator of dropout, for a checkpoint."""
        return {"torch_rng": torch.get_rng_state(), "cuda_rng": None}

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Restore a state from rng_state."""
        torch.set_rng_state(state["torch_rng"])

    def close(self) -> None:
        """Do nothing: a CPU stream holds no resources."""


class CudaStream:
    """A queue of work on a GPU, with its own random numbers and one captured step.

    Dropout always draws from the default generator. While this stream is active, the default generator therefore has
    the state of this stream, so the random numbers of a run do not depend on other runs.
    """

    def __init__(self, device: torch.device) -> None:
        """device: the GPU."""
        torch.cuda.init()  # creates the default generator
        self.stream = torch.cuda.Stream(device)
        self.stream.wait_stream(torch.cuda.current_stream(device))  # until the data has been copied to the GPU
        self.dropout = torch.Generator(device)
        self.default = torch.cuda.default_generators[self.stream.device.index]
        self.graph: torch.cuda.CUDAGraph | None = None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Return a context in which work goes to this stream and dropout draws from its generator."""
        shared = self.default.graphsafe_get_state()
        self.default.graphsafe_set_state(self.dropout)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            self.default.graphsafe_set_state(shared)

    def record_event(self) -> Any:
        """Mark a point between two pieces of work; returns a torch.cuda.Event."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(self.stream)
        return event

    def is_done(self, event: torch.cuda.Event) -> bool:
        """Check whether all work before the event is done, without waiting."""
        return event.query()

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Return the seconds between two events; both must be done. Other streams use the GPU in the meantime, too."""
        return start.elapsed_time(end) / 1000

    def capture(self, step: TrainingStep) -> Callable[[], None]:
        """Capture the step as a CUDA graph; calling the result replays it. Call this while the stream is active.

        If the step cannot be captured, this prints a line and returns the step itself. Results do not change, because
        capturing executes nothing and the warm-up steps are undone.
        """
        self._drop_graph()
        dropout_state = self.dropout.get_state()
        with warnings.catch_warnings():  # AdamW with capturable=True warns about these steps, which are not captured
            warnings.filterwarnings("ignore", message=".*capturable=True")
            step.warm_up()
        self.dropout.set_state(dropout_state)
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(step.generator)
        try:
            with torch.cuda.graph(self.graph, stream=self.stream):
                step()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.graph = None
            reason = str(error).partition("\n")[0]
            print(f"this network cannot be captured as a CUDA graph ({reason}); training goes on without it")
            return step
        return self.graph.replay

    def rng_state(self) -> dict[str, Any]:
        """Return the states of the random generators, for a checkpoint."""
        return {"torch_rng": torch.get_rng_state(), "cuda_rng": self.dropout.get_state()}

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Restore a state from rng_state."""
        torch.set_rng_state(state["torch_rng"])
        self.dropout.set_state(state["cuda_rng"])

    def close(self) -> None:
        """Wait for the work in the queue and free the memory of the graph."""
        self._drop_graph()
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)

    def _drop_graph(self) -> None:
        """Wait for the work in the queue and free the memory of the captured step, if there is one."""
        self.stream.synchronize()
        if self.graph is not None:
            self.graph.reset()
            self.graph = None


def open_stream(device: torch.device) -> CpuStream | CudaStream:
    """Open the kind of stream that the device needs."""
    return CudaStream(device) if device.type == "cuda" else CpuStream()
