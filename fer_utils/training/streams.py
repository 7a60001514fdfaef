"""Where the work of a training run goes: to the CPU, done at once, or into a GPU's queue, captured once and replayed.

Launching a kernel from Python takes longer than many kernels run. A CUDA graph holds all kernels of a step, and
replaying it is one launch. One small network does not fill a GPU, but several side by side do: so every run has a
stream, a queue of its own.
"""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator

import torch

from fer_utils.training.step import TrainingStep


class CpuStream:
    """Work on a CPU is done when the call returns: nothing to capture, nothing to wait for."""

    def active(self) -> contextlib.AbstractContextManager:
        """Within it, work goes to this stream."""
        return contextlib.nullcontext()

    def record_event(self) -> float:
        """A point between two pieces of work."""
        return time.perf_counter()

    def is_done(self, event: float) -> bool:
        """Whether all work before the event is done."""
        return True

    def seconds(self, start: float, end: float) -> float:
        """Seconds from one event to another; both must be done."""
        return end - start

    def capture(self, step: TrainingStep) -> Callable[[], None]:
        """The step, ready to be called again and again."""
        return step

    def rng_state(self) -> dict[str, torch.Tensor | None]:
        """The state of the generator that dropout draws from, for a checkpoint."""
        return {"torch_rng": torch.get_rng_state(), "cuda_rng": None}

    def set_rng_state(self, state: dict[str, torch.Tensor | None]) -> None:
        """Go on drawing where rng_state was taken."""
        torch.set_rng_state(state["torch_rng"])

    def close(self) -> None:
        """Give back what the stream holds."""


class CudaStream:
    """A queue of work on a GPU, with random numbers of its own and one captured step.

    Dropout takes no generator: it draws from the default one. So while this stream is active, the default generator
    has the state of this stream's, and what a run draws does not depend on its neighbors.
    """

    def __init__(self, device: torch.device) -> None:
        """device: the GPU."""
        torch.cuda.init()  # before that there is no default generator
        self.stream = torch.cuda.Stream(device)
        self.stream.wait_stream(torch.cuda.current_stream(device))  # for the data that was copied there before
        self.dropout = torch.Generator(device)
        self.default = torch.cuda.default_generators[self.stream.device.index]
        self.graph: torch.cuda.CUDAGraph | None = None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Within it, work goes to this stream, and dropout draws from its generator."""
        shared = self.default.graphsafe_get_state()
        self.default.graphsafe_set_state(self.dropout)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            self.default.graphsafe_set_state(shared)

    def record_event(self) -> torch.cuda.Event:
        """A point between two pieces of work."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(self.stream)
        return event

    def is_done(self, event: torch.cuda.Event) -> bool:
        """Whether all work before the event is done; answers at once."""
        return event.query()

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Seconds from one event to another; both must be done. Other streams share the GPU meanwhile."""
        return start.elapsed_time(end) / 1000

    def capture(self, step: TrainingStep) -> Callable[[], None]:
        """The step as a CUDA graph, to be replayed by calling it; the step itself, and a line, where that fails.

        Capturing executes nothing, and the steps that warm up are undone: no result depends on it. Call it while this
        stream is active.
        """
        drawn = self.dropout.get_state()
        with warnings.catch_warnings():  # AdamW is told that it will be captured, and warns that it is not yet
            warnings.filterwarnings("ignore", message=".*capturable=True")
            step.warm_up()
        self.dropout.set_state(drawn)
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
            print(f"this network cannot be captured as a CUDA graph ({reason}): training goes on eagerly")
            return step
        return self.graph.replay

    def rng_state(self) -> dict[str, torch.Tensor | None]:
        """The state of the generator that dropout draws from, for a checkpoint."""
        return {"torch_rng": torch.get_rng_state(), "cuda_rng": self.dropout.get_state()}

    def set_rng_state(self, state: dict[str, torch.Tensor | None]) -> None:
        """Go on drawing where rng_state was taken."""
        torch.set_rng_state(state["torch_rng"])
        self.dropout.set_state(state["cuda_rng"])

    def close(self) -> None:
        """Wait for what is queued, and give the graph's memory back."""
        self.stream.synchronize()
        if self.graph is not None:
            self.graph.reset()
            self.graph = None
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)


def open_stream(device: torch.device) -> CpuStream | CudaStream:
    """A stream of the kind that the device has."""
    return CudaStream(device) if device.type == "cuda" else CpuStream()
