"""Train on a Ray cluster: Ray sends each run to a machine with a free GPU or enough CPUs.

The environment variable FER_RAY turns this on. Its value is "auto" for the cluster on this machine, or the address
(host:port) of a cluster that this machine has joined. Ray moves the data and repeats the runs of a lost machine.
"""

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import torch

from fer_utils.device import select_device
from fer_utils.errors import TrainingError
from fer_utils.training.run import FitResult, Run, results_of

FitAll = Callable[[Sequence[Run], torch.device], list[FitResult]]  # trains runs in this process: loop.fit_all
CONNECT_SECONDS = 30  # time limit for the first connection to the cluster
ATTEMPT = """\
import sys, ray
try:
    ray.init(sys.argv[1])
except Exception as error:
    sys.exit(" ".join(str(error).split()))
"""
RETRIES = 3  # how often Ray repeats a run after it lost its worker or its machine


def can_take(runs: Sequence[Run]) -> bool:
    """Check whether FER_RAY is set and all runs can be sent; a callback must stay in the process that defined it."""
    return bool(os.environ.get("FER_RAY")) and not any(run.on_epoch for run in runs)


def fit_all(runs: Sequence[Run], device: torch.device, fit_locally: FitAll) -> list[FitResult]:
    """Train every run as a Ray task with one GPU, or with as many CPUs as torch has threads here.

    fit_locally: trains a run inside its worker. Results, errors and models are the same as after local training. If
    this call ends early, for whatever reason, its tasks are canceled.
    """
    ray = _connect(os.environ["FER_RAY"])
    waiting: dict[Any, int] = {}  # task -> position of its run
    ended: dict[int, FitResult | TrainingError] = {}
    try:
        for position, task in enumerate(_submit(ray, runs, device, fit_locally)):
            waiting[task] = position
        while waiting:
            [task], _ = ray.wait(list(waiting))
            position = waiting.pop(task)  # at once, because canceling a task that has just ended can crash Ray
            ended[position] = outcome = _collect(ray, task, runs[position], device)
            if isinstance(outcome, TrainingError) and len(runs) > 1:
                print(f"{runs[position].name}: {outcome}; the other runs go on", flush=True)
    finally:
        for task in waiting:
            ray.cancel(task, force=True)  # without force, a run that has started would go on
    return results_of(ended[position] for position in range(len(runs)))


def _connect(address: str) -> ModuleType:
    """Connect to the cluster and return the module ray; TrainingError if Ray is not installed or cannot connect."""
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # otherwise Ray drops lines that differ only in their numbers
    try:
        import ray
    except ImportError as error:
        raise TrainingError("FER_RAY is set, but Ray is not installed: pip install ray, or unset FER_RAY") from error
    if ray.is_initialized():
        return ray
    try:
        _try_to_connect(address)
        ray.init(address, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise TrainingError(
            f"FER_RAY is {address}, but Ray cannot connect ({_first_sentence(error)}); run `ray start --head` to start "
            "a cluster on this machine, or `ray start --address=HOST:PORT` to join one, or unset FER_RAY"
        ) from error
    return ray


def _try_to_connect(address: str) -> None:
    """Connect once from another process; ConnectionError if this fails or takes more than CONNECT_SECONDS.

    Without a cluster at the address, ray.init tries for 15 minutes, and only ending its process stops it.
    """
    command = [sys.executable, "-c", ATTEMPT, address]
    try:
        attempt = subprocess.run(command, capture_output=True, text=True, timeout=CONNECT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ConnectionError(f"no answer within {CONNECT_SECONDS} seconds") from error
    if attempt.returncode:
        raise ConnectionError(attempt.stderr.strip().rpartition("\n")[2])


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of an error message of Ray, without the advice after it."""
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".")


def _submit(ray: ModuleType, runs: Sequence[Run], device: torch.device, fit_locally: FitAll) -> Iterator[Any]:
    """Start one task per run, in the order of the runs."""
    threads = torch.get_num_threads()
    kind, amount = ("GPU", 1) if device.type == "cuda" else ("CPU", threads)
    _require_machine(ray, kind, amount)
    arrays = {id(array): array for run in runs for array in (*run.train, *run.val)}
    stored = {key: ray.put(array) for key, array in arrays.items()}  # only once for an array that several runs share
    task, options = ray.remote(_train), {f"num_{kind.lower()}s": amount, "max_retries": RETRIES}
    for run in runs:
        data = [stored[id(array)] for array in (*run.train, *run.val)]
        file = run.checkpoint and run.checkpoint.absolute()  # a worker has its own working directory
        nothing = (np.empty(0), np.empty(0))
        bare = replace(run, train=nothing, val=nothing, checkpoint=file)
        named = task.options(name=run.name or "run", **options)  # Ray prints the name before each line of a run
        yield named.remote(bare, device.type, threads, fit_locally, *data)


def _require_machine(ray: ModuleType, kind: str, amount: int) -> None:
    """Raise TrainingError if no machine of the cluster could ever run a task: Ray would wait forever."""
    most = max((node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]), default=0)
    if most < amount:
        advice = "call torch.set_num_threads with fewer" if kind == "CPU" else "add a machine that has one"
        raise TrainingError(f"a run needs {amount} {kind}, and no machine of the Ray cluster has it; {advice}")


def _train(run: Run, device: str, threads: int, fit_locally: FitAll, *arrays: np.ndarray) -> Any:
    """Train one run inside a worker; returns its weights and result, or its TrainingError."""
    os.environ.pop("FER_RAY", None)  # inherited from `ray start`; without it, the worker trains the run itself
    torch.set_num_threads(threads)
    # Ray's arrays are read-only. torch warns about writing to them, but training only reads them.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    try:
        images, targets, val_images, val_targets = arrays
        whole = replace(run, train=(images, targets), val=(val_images, val_targets))
        result = fit_locally([whole], select_device(device))[0]
    except TrainingError as error:
        return error
    return {name: tensor.cpu() for name, tensor in run.model.state_dict().items()}, result


def _collect(ray: ModuleType, task: Any, run: Run, device: torch.device) -> FitResult | TrainingError:
    """Return the outcome of a task, after loading the weights of its best epoch into the model of the run."""
    try:
        outcome = ray.get(task)
    except ray.exceptions.RayTaskError:  # any other exception in the run is raised here too, as in local training
        raise
    except ray.exceptions.RayError as error:
        return TrainingError(f"the cluster lost this run and {RETRIES} retries of it ({_first_sentence(error)})")
    if isinstance(outcome, TrainingError):
        return outcome
    weights, result = outcome
    run.model.to(device).to(memory_format=torch.channels_last).load_state_dict(weights)
    return result
