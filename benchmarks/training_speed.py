"""How fast the training engine is, side by side with a DataLoader loop, and what each of its choices gains.

    python benchmarks/training_speed.py --data data/archive.zip
    python benchmarks/training_speed.py --data data/archive.zip --out reports

Three tables. benchmark_engine: `fit` against the usual way to write it (PIL images, torchvision's transforms, a
DataLoader with one worker process per core, fp32, `.item()` at every step), with the same model, batch size and
optimizer. benchmark_settings: precision, memory format and torch.compile. benchmark_seeds, on a CPU only: two seeds one
after the other, or at once. With --out they are published there, and the next run of run_all.sh shows them in
report.html. Takes about nine minutes on two cores; nothing else should run meanwhile.

Whatever is compared takes turns in short rounds, and the fastest round of each counts: other work on the machine then
hardly matters. Both ways have a process of their own, so that memory is theirs and nothing is left over from the other.
"""

import argparse
import contextlib
import functools
import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from fer_utils.augment import PIXEL_MEAN, PIXEL_SD, Augment, to_float
from fer_utils.data import FER2013, load_data
from fer_utils.device import choose_precision, device_name, select_device, set_seed
from fer_utils.models import build_model
from fer_utils.paths import PROJECT_ROOT
from fer_utils.pipeline.provenance import code_state, package_versions
from fer_utils.pipeline.publish import Folders, publish
from fer_utils.report import Report, data_note, to_markdown
from fer_utils.training import TrainConfig, fit
from fer_utils.training.optim import build_optimizer
from fer_utils.training.step import train_step
from fer_utils.training.tasks import classification

BATCH = 128
TRAIN_IMAGES = 28_709  # FER2013's training split
MODELS = {
    "baseline_cnn": ("baseline_cnn", {}),
    "resnet18": ("resnet18", {"stem": "imagenet"}),
    "resnet18, middle stem": ("resnet18", {"stem": "middle"}),
}
CPU_STEPS = {"baseline_cnn": 24, "resnet18": 6, "resnet18, middle stem": 3}  # per round; on a GPU: a whole epoch
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SEEDS_MODELS = ("baseline_cnn", "resnet18")
USUAL, ENGINE = "DataLoader", "engine"
NAME = "benchmark_training"
TABLES = ("benchmark_engine", "benchmark_settings", "benchmark_seeds")


# --- In the measuring processes ---------------------------------------------------------------------------------------


@functools.cache
def train_data(source: str) -> tuple[np.ndarray, np.ndarray]:
    """Training images (N,48,48) uint8 and labels (N,), loaded once per process."""
    with contextlib.redirect_stdout(io.StringIO()):
        faces = load_data(source)
    chosen = faces.where("train")
    return faces.images[chosen], faces.labels[chosen]


def new_model(name: str, seed: int = 0) -> nn.Module:
    """A model by its name in MODELS."""
    set_seed(seed)
    architecture, options = MODELS[name]
    return build_model(architecture, **options)


def now(device: str) -> float:
    """Seconds on a clock, read when the device has done all that it was asked to do."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_per_call(call: Callable[[], object], calls: int, device: str) -> float:
    """Mean seconds of several calls in a row."""
    start = now(device)
    for _ in range(calls):
        call()
    return (now(device) - start) / calls


def engine_precision(name: str, device: str) -> str:
    """The precision that the engine takes for this model on this device."""
    return choose_precision(new_model(name), torch.device(device))


def engine_whole(source: str, name: str, device: str, steps: int, precision: str, seed: int = 0) -> float:
    """Seconds per step of an epoch of `fit` with that many steps, as fit itself counts them."""
    images, labels = train_data(source)
    config = TrainConfig(epochs=1, batch_size=BATCH, precision=precision, seed=seed)
    few = slice(steps * BATCH)
    with contextlib.redirect_stdout(io.StringIO()):
        run = fit(new_model(name, seed), (images[few], labels[few]), (images[:8], labels[:8]), config, device)
    return run.train_seconds / steps


def engine_parts(source: str, name: str, device: str, steps: int, precision: str) -> tuple[float, float]:
    """Seconds per batch of the input side alone, and of forward, backward and update alone."""
    images, labels = (torch.as_tensor(array).to(device) for array in train_data(source))
    config, task = TrainConfig(batch_size=BATCH), classification(TrainConfig.label_smoothing)
    model = new_model(name).to(device, memory_format=torch.channels_last).train()
    optimizer, generator = build_optimizer(model, config), torch.Generator(device).manual_seed(0)
    chosen = torch.randperm(len(images), device=device)[:BATCH]

    def cut_and_change():
        return task.augment(to_float(images[chosen]), labels[chosen], config.augment, generator, None)

    inputs, targets = cut_and_change()

    def learn():
        train_step(model, optimizer, inputs, targets, task.loss, precision)

    learn()
    return seconds_per_call(cut_and_change, 4 * steps, device), seconds_per_call(learn, steps, device)


class Faces(Dataset):
    """Faces as PIL images, each changed on its own by torchvision as Augment() changes a batch."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        how = Augment()
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(how.flip),
                transforms.RandomAffine(
                    degrees=how.rotate,
                    translate=(how.shift, how.shift),
                    scale=(1 - how.scale, 1 + how.scale),
                    interpolation=transforms.InterpolationMode.BILINEAR,
                ),
                transforms.ColorJitter(brightness=how.brightness, contrast=how.contrast),
                transforms.ToTensor(),
                transforms.Normalize([PIXEL_MEAN], [PIXEL_SD]),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def endless_loader(faces: Faces, batch_size: int, device: str, workers: int) -> DataLoader:
    """A DataLoader that never runs dry: at an end, batches made in advance would come for free."""
    sampler = RandomSampler(faces, num_samples=10**9)
    return DataLoader(
        faces, batch_size, sampler=sampler, num_workers=workers, pin_memory=device == "cuda", drop_last=True
    )


def usual_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of a config with torch's own settings."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=True
    )


def usual_loop(model: nn.Module, config: TrainConfig, device: str) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A function that makes one step as a training loop is usually written."""
    model = model.to(device).train()
    loss_of = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    optimizer = usual_optimizer(model, config)
    total = {"loss": 0.0, "correct": 0}

    def step(inputs: torch.Tensor, labels: torch.Tensor) -> None:
        inputs, labels = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = loss_of(outputs, labels)
        loss.backward()
        if config.clip:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        total["loss"] += loss.item()
        total["correct"] += (outputs.argmax(1) == labels).sum().item()

    return step


def usual_seconds(
    step: Callable[[torch.Tensor, torch.Tensor], None], loader: DataLoader, steps: int, device: str
) -> float:
    """Seconds per step of the usual way, once every worker had the time to start."""
    batches = iter(loader)
    for _ in range(loader.num_workers):
        step(*next(batches))
    return seconds_per_call(lambda: step(*next(batches)), steps, device)


def usual_whole(source: str, name: str, device: str, steps: int, workers: int) -> float:
    """Seconds per step of the usual way for a model of MODELS."""
    loader = endless_loader(Faces(*train_data(source)), BATCH, device, workers)
    return usual_seconds(usual_loop(new_model(name), TrainConfig(), device), loader, steps, device)


def usual_parts(source: str, name: str, device: str, steps: int, workers: int) -> tuple[float, float]:
    """Seconds per batch of the workers alone, and of forward, backward and update alone."""
    step = usual_loop(new_model(name), TrainConfig(), device)
    batches = iter(endless_loader(Faces(*train_data(source)), BATCH, device, workers))
    for _ in range(4 * workers):  # afterwards none is left that was made in advance
        batch = next(batches)
    loading = seconds_per_call(functools.partial(next, batches), 4 * workers, device)
    del batches  # ends the workers
    step(*batch)
    return loading, seconds_per_call(lambda: step(*batch), steps, device)


def time_settings(name: str, device: str, steps: int, rounds: int, cache: str) -> list[dict]:
    """Images per second with every precision and memory format, and compiled with the fastest of these."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # an empty one: what was compiled before must not come for free
    settings = list(itertools.product(("fp32", "bf16"), LAYOUTS))
    calls = {setting: training_call(name, device, *setting) for setting in settings}
    for call in calls.values():
        call()
    fastest = min(settings, key=lambda setting: seconds_per_call(calls[setting], steps, device))
    compiled = training_call(name, device, *fastest, compiled=True)
    failure, compile_seconds = try_to_compile(compiled, device)
    if not failure:
        calls["compiled"] = compiled
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for key, call in calls.items():
            best[key] = min(best[key], seconds_per_call(call, steps, device))
    rows = {
        setting: {
            "model": name,
            "precision": setting[0],
            "memory format": setting[1],
            "images per second": BATCH / best[setting],
        }
        for setting in settings
    }
    rows[fastest]["images per second, compiled"] = failure or BATCH / best["compiled"]
    rows[fastest]["compile seconds"] = compile_seconds
    return list(rows.values())


def training_call(name: str, device: str, precision: str, layout: str, compiled: bool = False) -> Callable[[], object]:
    """A function that makes one step of the engine on noise. The weights' memory format decides that of all layers."""
    model = new_model(name).to(device, memory_format=LAYOUTS[layout]).train()
    optimizer = build_optimizer(model, TrainConfig())
    inputs = torch.randn(BATCH, 1, 48, 48, device=device)
    labels = torch.randint(7, (BATCH,), device=device)
    loss_of = classification(TrainConfig.label_smoothing).loss
    forward = torch.compile(model) if compiled else model
    return lambda: train_step(forward, optimizer, inputs, labels, loss_of, precision)


def try_to_compile(call: Callable[[], object], device: str) -> tuple[str, float]:
    """Make the first step of a compiled model: why it failed ("" if it did not), and the seconds it took (or nan)."""
    try:
        return "", seconds_per_call(call, 1, device)
    except RuntimeError as error:  # all that torch.compile raises on its own account
        text = f"{type(error).__name__} {error}"
        return "no C++ compiler" if "InvalidCxxCompiler" in text else f"fails: {text.split()[0]}", float("nan")


def peak_gpu_mb() -> float:
    """The most that tensors of this process took on the GPU so far, in MB."""
    return torch.cuda.max_memory_allocated() / 1e6


# --- In the process that compares -------------------------------------------------------------------------------------


def process(threads: int) -> ProcessPoolExecutor:
    """A fresh Python process that computes with that many threads, and does what is submitted."""
    fresh = get_context("forkserver")  # starts each from one that has imported torch, and done nothing else
    fresh.set_forkserver_preload(["fer_utils.models", "fer_utils.training", "fer_utils.report"])
    return ProcessPoolExecutor(1, fresh, initializer=torch.set_num_threads, initargs=(threads,))


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB, with what its own processes do not share with it."""
    parent = psutil.Process(pid)
    total = parent.memory_info().rss
    for child in parent.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            total += child.memory_full_info().uss
    return total / 1e6


def watch_memory(future: Future, pid: int) -> float:
    """Wait for a result; return the peak of the resident memory meanwhile, in MB."""
    peak = resident_mb(pid)
    while not wait([future], timeout=0.2).done:
        peak = max(peak, resident_mb(pid))
    return peak


def compare(name: str, source: str, device: str, steps: int, rounds: int) -> list[dict]:
    """Rows of benchmark_engine for one model: the usual way, then the engine."""
    threads, workers = torch.get_num_threads(), cores()
    with process(threads) as usual, process(threads) as engine:
        precision = engine.submit(engine_precision, name, device).result()
        ways = {
            USUAL: (usual, usual_whole, usual_parts, workers, "fp32"),
            ENGINE: (engine, engine_whole, engine_parts, precision, precision),
        }
        pids = {way: pool.submit(os.getpid).result() for way, (pool, *_) in ways.items()}
        found = {way: [] for way in ways}
        for _ in range(rounds):
            for way, (pool, whole, parts, setting, _) in ways.items():
                task = pool.submit(whole, source, name, device, steps, setting)
                memory = watch_memory(task, pids[way])
                if device == "cuda":
                    memory = pool.submit(peak_gpu_mb).result()
                seconds = pool.submit(parts, source, name, device, steps, setting).result()
                found[way].append((task.result(), *seconds, memory))
    rows = []
    for way, rounds_of_way in found.items():
        whole, loading, learning, _ = np.min(rounds_of_way, axis=0)
        row = engine_row(name, way, ways[way][-1], steps, whole, loading, learning)
        rows.append(row | {"peak memory, MB": max(memory for *_, memory in rounds_of_way)})
    for row in rows:
        row["times as fast"] = row["images per second"] / rows[0]["images per second"]
    return rows


def engine_row(
    name: str, way: str, precision: str, steps: int, whole: float, loading: float, learning: float
) -> dict[str, object]:
    """A row of benchmark_engine from seconds per step: all of it, the input side alone, the rest alone."""
    return {
        "model": name,
        "way": way,
        "precision": precision,
        "steps timed": steps,
        "images per second": BATCH / whole,
        "seconds per epoch": TRAIN_IMAGES // BATCH * whole,
        "input, ms": 1000 * loading,
        "learning, ms": 1000 * learning,
        "input, %": 100 * loading / (loading + learning),
    }


def compare_seeds(name: str, source: str, steps: int, rounds: int) -> list[dict]:
    """Rows of benchmark_seeds for one model: images per second of two seeds together."""
    threads = torch.get_num_threads()
    half = max(1, threads // 2)
    with process(threads) as single, process(half) as first, process(half) as second:
        precision = single.submit(engine_precision, name, "cpu").result()
        train = functools.partial(engine_whole, source, name, "cpu", steps, precision)
        for pool in (first, second):
            pool.submit(train_data, source).result()  # so that both start at once
        one_by_one, at_once = [], []
        for _ in range(rounds):
            one_by_one.append(sum(single.submit(train, seed=seed).result() for seed in (0, 1)))
            both = [pool.submit(train, seed=seed) for seed, pool in enumerate((first, second))]
            at_once.append(max(task.result() for task in both))
    ways = [("one after the other", 1, threads, min(one_by_one)), ("at once", 2, half, min(at_once))]
    return [
        {
            "model": name,
            "two seeds": way,
            "processes": processes,
            "threads each": threads_each,
            "images per second": 2 * BATCH / seconds,
        }
        for way, processes, threads_each, seconds in ways
    ]


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def targets(table: pd.DataFrame, device: str) -> list[str]:
    """Sentences that say whether the engine reaches what it was written for."""
    sentences = []
    for row in table[table.way == ENGINE].to_dict("records"):
        if device == "cuda":
            value, met = f"{row['times as fast']:.1f} times as fast as the DataLoader", row["times as fast"] >= 8
            sentences.append(f"{row['model']}: {value}, target at least 8: {'met' if met else 'MISSED'}")
        elif row["model"].startswith("resnet18"):
            value, met = f"the input side takes {row['input, %']:.1f} % of a step", row["input, %"] < 10
            sentences.append(f"{row['model']}: {value}, target below 10 %: {'met' if met else 'MISSED'}")
    return sentences


def publish_tables(
    tables: dict[str, tuple[pd.DataFrame, str]],
    faces: FER2013,
    profile: str,
    device: str,
    out: Path,
    name: str = NAME,
    digits: int = 2,
) -> None:
    """Publish tables and their manifest below `out` as the pipeline publishes those of a notebook.

    name: of the benchmark; the names of its tables begin with the same word. Those of an earlier run are replaced. out:
    an absolute path. digits: decimals of the Markdown tables.
    """
    with tempfile.TemporaryDirectory() as work:
        folders = Folders(root=out.parent, work=Path(work), outputs=out.parent / "outputs", reports=out)
        report = Report(name, faces, profile, device, folders.staging(name))
        with contextlib.redirect_stdout(io.StringIO()):  # they have been printed in a form fit for a terminal
            for title, (table, caption) in tables.items():
                report.table(table, title, caption, digits=digits)
        facts = {"device_name": device, "versions": package_versions(), **code_state(PROJECT_ROOT)}
        publish(name, folders, earlier=[], run=facts)  # which also removes what else is named like this benchmark


def measure(source: str, n: int, device: str, quick: bool) -> dict[str, tuple[pd.DataFrame, str]]:
    """All tables with their captions. n: number of training images there are."""
    models, rounds = (["baseline_cnn"], 1) if quick else (list(MODELS), 3)
    steps = {name: min(2 if quick else CPU_STEPS[name], n // BATCH) for name in models}
    if device == "cuda" and not quick:
        steps = dict.fromkeys(models, n // BATCH)
    machine = f"{device_name(torch.device(device))}, torch {torch.__version__}"
    where = f"{machine}; batches of {BATCH}; fastest of {rounds} rounds"
    engine = [row for name in models for row in compare(name, source, device, steps[name], rounds)]
    tables = {
        TABLES[0]: (
            pd.DataFrame(engine),
            f"Training with fer_utils.train.fit (engine) and with PIL, torchvision and a DataLoader with {cores()} "
            f"workers; {where}. Seconds per epoch are extrapolated from the steps timed to {TRAIN_IMAGES:,} images. "
            "Input (cutting a batch, scaling, augmentation) and learning (forward, backward, update) are timed each on "
            "their own; their sum is the whole step unless they overlap. Peak memory: "
            + ("tensors on the GPU." if device == "cuda" else "resident, with worker processes."),
        )
    }
    settings = []
    for name in models:
        with process(torch.get_num_threads()) as pool, tempfile.TemporaryDirectory() as cache:
            few = steps[name] if device == "cuda" else max(1, steps[name] // 3)
            settings += pool.submit(time_settings, name, device, few, rounds, cache).result()
    caption = (
        f"Training steps on noise, without input side; {where}. The fastest of the four is compiled with torch.compile "
        "as well; compile seconds are those of the first step."
    )
    tables[TABLES[1]] = (pd.DataFrame(settings), caption)
    if device == "cpu":
        seeds = [
            row for name in models if name in SEEDS_MODELS for row in compare_seeds(name, source, steps[name], rounds)
        ]
        caption = f"Training two seeds: images per second of both together; {where}. Steps per round as above."
        tables[TABLES[2]] = (pd.DataFrame(seeds), caption)
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="path of FER2013, or sample")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, help="folder to publish to, such as reports (default: print only)")
    parser.add_argument("--quick", action="store_true", help="a few steps of the smallest model, to see that it works")
    options = parser.parse_args()
    device = select_device(options.device).type
    faces = load_data(options.data)
    trial = options.quick or not faces.standard
    out = options.out and options.out.resolve()
    if trial and out == PROJECT_ROOT / "reports":
        parser.error(
            "reports/ holds full runs on FER2013 only; leave out --quick, give FER2013, or choose another --out"
        )
    started = time.monotonic()
    tables = measure(options.data, int(faces.where("train").sum()), device, options.quick)
    for name, (table, caption) in tables.items():
        print(f"\n{name}: {' '.join(filter(None, [caption, data_note(faces)]))}\n\n{to_markdown(table, 2)}", flush=True)
    print(
        "\n" + "\n".join([*targets(tables[TABLES[0]][0], device), f"{time.monotonic() - started:.0f} seconds in all"])
    )
    if out:
        profile = "sample" if trial else {"cpu": "cpu", "cuda": "full"}[device]
        publish_tables(tables, faces, profile, device_name(torch.device(device)), out)


if __name__ == "__main__":
    main()
