"""Training on a Ray cluster: fit_all hands its runs to Ray, which finds a machine with a free GPU or enough CPUs.

The environment variable FER_RAY turns this on. It is "auto" for the cluster that runs on this machine, or the address
of a cluster that this machine has joined (host:port). Ray moves the data, and repeats what a lost machine was doing.
"""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fer_utils.errors import TrainingError

if TYPE_CHECKING:  # train imports this module
    from fer_utils.training.loop import FitResult, Run

CONNECT_SECONDS = 30
ATTEMPT = """\
import sys, ray
try:
    ray.init(sys.argv[1])
except Exception as error:
    sys.exit(" ".join(str(error).split()))
"""
RETRIES = 3  # so often is a run repeated whose worker or machine was lost


def can_take(runs: "Sequence[Run]") -> bool:
    """Whether FER_RAY is set and all runs can travel; a callback has to stay in the process that defined it."""
    return bool(os.environ.get("FER_RAY")) and not any(run.on_epoch for run in runs)


def fit_all(runs: "Sequence[Run]", device: torch.device) -> "list[FitResult]":
    """Train every run as a Ray task with one GPU, or with as many CPUs as torch has threads here.

    Results, errors and models end as in train.fit_all. Whatever ends this call early also cancels its tasks.
    """
    ray = _connect(os.environ["FER_RAY"])
    waiting: dict[Any, int] = {}  # position of its run for each task
    ended: dict[int, FitResult | TrainingError] = {}
    try:
        for position, task in enumerate(_submit(ray, runs, device)):
            waiting[task] = position
        while waiting:
            [task], _ = ray.wait(list(waiting))
            position = waiting.pop(task)  # at once: to cancel a task that has just ended can crash Ray
            ended[position] = outcome = _collect(ray, task, runs[position], device)
            if isinstance(outcome, TrainingError) and len(runs) > 1:
                print(f"{runs[position].name}: {outcome}; the other runs go on", flush=True)
    finally:
        for task in waiting:
            ray.cancel(task, force=True)  # without force a run that has begun trains on
    results = [ended[position] for position in range(len(runs))]
    for failure in (result for result in results if isinstance(result, TrainingError)):
        raise failure
    return results


def _connect(address: str) -> ModuleType:
    """The module ray, connected to the cluster; TrainingError when Ray is not installed, or no cluster answers."""
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # else lines that differ only in their numbers are held back
    try:
        import ray
    except ImportError as error:
        raise TrainingError("FER_RAY is set, but Ray is not installed: pip install ray, or unset FER_RAY") from error
    if ray.is_initialized():
        return ray
    try:
        _try_to_connect(address)
        ray.init(address, logging_level="WARNING")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise TrainingError(
            f"FER_RAY is {address}, but Ray cannot connect ({_first_sentence(error)}); run `ray start --head` to start "
            "a cluster on this machine, or `ray start --address=HOST:PORT` to join one, or unset FER_RAY"
        ) from error
    return ray


def _try_to_connect(address: str) -> None:
    """Connect once from another process; ConnectionError when that fails, or takes more than CONNECT_SECONDS.

    Where nobody answers, ray.init tries for a quarter of an hour, and only ending its process stops it.
    """
    command = [sys.executable, "-c", ATTEMPT, address]
    try:
        attempt = subprocess.run(command, capture_output=True, text=True, timeout=CONNECT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ConnectionError(f"no answer within {CONNECT_SECONDS} seconds") from error
    if attempt.returncode:
        raise ConnectionError(attempt.stderr.strip().rpartition("\n")[2])


def _first_sentence(error: Exception) -> str:
    """What an error of Ray says, without its advice."""
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".")


def _submit(ray: ModuleType, runs: "Sequence[Run]", device: torch.device) -> Iterator[Any]:
    """Start a task for every run, in their order."""
    threads = torch.get_num_threads()
    kind, amount = ("GPU", 1) if device.type == "cuda" else ("CPU", threads)
    _require_machine(ray, kind, amount)
    arrays = {id(array): array for run in runs for array in (*run.train, *run.val)}
    stored = {key: ray.put(array) for key, array in arrays.items()}  # once, however many runs share an array
    task, options = ray.remote(_train), {f"num_{kind.lower()}s": amount, "max_retries": RETRIES}
    for run in runs:
        data = [stored[id(array)] for array in (*run.train, *run.val)]
        file = run.checkpoint and run.checkpoint.absolute()  # a worker has a working directory of its own
        bare = replace(run, train=(), val=(), checkpoint=file)
        named = task.options(name=run.name or "run", **options)  # Ray puts the name before each line of a run
        yield named.remote(bare, device.type, threads, *data)


def _require_machine(ray: ModuleType, kind: str, amount: int) -> None:
    """TrainingError when no machine could ever run a task: Ray would wait for one without end."""
    most = max((node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]), default=0)
    if most < amount:
        advice = "call torch.set_num_threads with fewer" if kind == "CPU" else "add a machine that has one"
        raise TrainingError(f"a run needs {amount} {kind}, and no machine of the Ray cluster has it; {advice}")


def _train(run: "Run", device: str, threads: int, *arrays: np.ndarray) -> Any:
    """In a worker: train one run as fit_all does locally; returns weights and result, or the TrainingError."""
    from fer_utils.device import select_device
    from fer_utils.training.loop import fit_all

    os.environ.pop("FER_RAY", None)  # workers inherit it from `ray start`, but a run is handed over only once
    torch.set_num_threads(threads)
    # Ray's arrays are read-only, and torch warns of writing to them, which training does not do.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    try:
        result = fit_all([replace(run, train=arrays[:2], val=arrays[2:])], select_device(device))[0]
    except TrainingError as error:
        return error
    return {name: tensor.cpu() for name, tensor in run.model.state_dict().items()}, result


def _collect(ray: ModuleType, task: Any, run: "Run", device: torch.device) -> "FitResult | TrainingError":
    """How a task has ended; the weights of its best epoch are then in the model of the run."""
    try:
        outcome = ray.get(task)
    except ray.exceptions.RayTaskError:  # any other exception of the run: it is raised here, as it would be locally
        raise
    except ray.exceptions.RayError as error:
        return TrainingError(f"the cluster lost this run and {RETRIES} retries of it ({_first_sentence(error)})")
    if isinstance(outcome, TrainingError):
        return outcome
    weights, result = outcome
    run.model.to(device, memory_format=torch.channels_last).load_state_dict(weights)
    return result
