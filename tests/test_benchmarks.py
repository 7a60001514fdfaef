"""The benchmarks of speed: that they run, that their tables are published, and that they compare like with like."""

import functools
import importlib
import importlib.util
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import tiny_faces
from torch import nn
from torch.autograd import DeviceType

from fer_utils.augment import NO_AUGMENT, to_float
from fer_utils.models.resnet import STEMS
from fer_utils.paths import PROJECT_ROOT
from fer_utils.pipeline.page import build_report
from fer_utils.pipeline.publish import Folders, publish
from fer_utils.report import Report
from fer_utils.training import TrainConfig
from fer_utils.training.streams import CpuStream

SCRIPT = PROJECT_ROOT / "benchmarks" / "training_speed.py"


@pytest.fixture(scope="module")
def benchmark():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("training_speed", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quick_run_measures_everything_and_publishes_it(tmp_path):
    command = [sys.executable, str(SCRIPT), "--data", "sample", "--device", "cpu", "--quick", "--out", str(tmp_path)]
    no_compiler = os.environ | {"CXX": str(tmp_path / "no" / "g++"), "PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run(command, env=no_compiler, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    engine, settings, seeds = (
        pd.read_csv(tmp_path / "tables" / f"benchmark_{name}.csv") for name in ("engine", "settings", "seeds")
    )
    assert engine.way.tolist() == ["DataLoader", "engine"]
    numbers = engine.select_dtypes("number")
    assert (numbers > 0).all(axis=None) and engine["input, %"].between(0, 100).all()
    assert len(settings) == 4 and (settings["images per second"] > 0).all()
    assert settings["images per second, compiled"].dropna().tolist() == ["no C++ compiler"]
    assert seeds.processes.tolist() == [1, 2] and (seeds["images per second"] > 0).all()
    for name in ("engine", "settings", "seeds"):
        text = (tmp_path / "tables" / f"benchmark_{name}.md").read_text()
        assert "CPU" in text and "Embedded sample data" in text
        assert text.split("\n\n")[1].strip() in done.stdout


def test_published_tables_reach_the_report_and_outlive_other_publications(benchmark, tmp_path):
    table = pd.DataFrame({"model": ["cnn"], "images per second": [12.5]})
    tables = {name: (table, f"Caption of {name}.") for name in benchmark.TABLES}
    benchmark.publish_tables(tables, tiny_faces(), "cpu", "x86_64 CPU, 2 threads", tmp_path)
    folders = Folders(tmp_path, tmp_path / "work", tmp_path / "outputs", tmp_path)
    other = Report("04_baseline_cnn", tiny_faces(), "cpu", "CPU", folders.staging("04_baseline_cnn"))
    other.table(table, "04_results", "Others.")
    publish("04_baseline_cnn", folders, earlier=["tables/04_old.csv"])
    build_report(tmp_path, {})
    page = (tmp_path / "report.html").read_text()
    shown = {name: f"Caption of {name.replace('_', ' ')}." for name in benchmark.TABLES}
    assert all(f'id="table-{name}"' in page and caption in page for name, caption in shown.items())

    del tables["benchmark_seeds"]  # as on a GPU
    benchmark.publish_tables(tables, tiny_faces(), "full", "GPU", tmp_path)
    build_report(tmp_path, {})
    left = sorted(path.name for path in (tmp_path / "tables").glob("*.csv"))
    assert left == ["04_results.csv", "anchors.csv", "benchmark_engine.csv", "benchmark_settings.csv", "claims.csv"]
    assert "benchmark_seeds" not in (tmp_path / "report.html").read_text()


def test_both_ways_show_the_network_the_same_images(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "Augment", lambda: NO_AUGMENT)
    faces = tiny_faces()
    shown = benchmark.Faces(faces.images[:9], faces.labels[:9])
    assert [label for _, label in (shown[i] for i in range(9))] == faces.labels[:9].tolist()
    expected = to_float(torch.as_tensor(faces.images[:9]))
    torch.testing.assert_close(torch.stack([shown[i][0] for i in range(9)]), expected, atol=1e-5, rtol=0)


def test_usual_augmentation_is_as_strong_as_the_engines(benchmark):
    face = np.zeros((48, 48), np.uint8)
    face[20:28, 20:28] = 200
    shown = benchmark.Faces(np.stack([face]), np.zeros(1, np.int64))
    many = torch.stack([shown[0][0] for _ in range(400)])
    ours = benchmark.classification().augment(
        to_float(torch.as_tensor(face)[None]).repeat(400, 1, 1, 1),
        torch.zeros(400, dtype=torch.long),
        benchmark.Augment(),
        torch.Generator().manual_seed(0),
        None,
    )[0]
    wide = [(batch[:, 0] > 0).float().mean(0).gt(0.01).sum().item() for batch in (many, ours)]
    assert abs(wide[0] - wide[1]) < 0.25 * wide[1]  # how many pixels the square gets to


@pytest.mark.parametrize(("device", "good", "bad"), [("cpu", 9.9, 10.1), ("cuda", 8.1, 7.9)])
def test_targets_are_judged(benchmark, device, good, bad):
    column = {"cpu": "input, %", "cuda": "times as fast"}[device]
    rows = [
        {"model": "resnet18", "way": benchmark.ENGINE, "input, %": 0, "times as fast": 0, column: v}
        for v in (good, bad)
    ]
    rows.append({"model": "resnet18", "way": benchmark.USUAL, "input, %": 50, "times as fast": 1})
    met, missed = benchmark.targets(pd.DataFrame(rows), device)
    assert met.endswith(": met") and missed.endswith(": MISSED")


def test_trials_are_not_published_among_the_results(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("it started to measure"))
    arguments = ["training_speed.py", "--data", "sample", "--out", str(PROJECT_ROOT / "reports")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        benchmark.main()
    assert stopped.value.code == 2 and "full runs on FER2013 only" in capsys.readouterr().err


# --- On a GPU ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpu():
    """gpu_speed.py as a module, which imports its neighbors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        yield importlib.import_module("gpu_speed")


class Recorder(CpuStream):
    """A stream that warms a step up, as recording does on a GPU, and then replays it by calling it."""

    def capture(self, step):
        step.warm_up()
        return lambda: step()


def tiny_network(gpu, name="tiny", batch_size=4, build=None):
    def linear():
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48 * 48, 7))

    return gpu.Network(name, build or linear, TrainConfig(batch_size=batch_size))


@pytest.fixture
def bench(gpu, monkeypatch):
    """A bench with 16 training images, whose streams behave as those of a GPU."""
    monkeypatch.setattr(gpu, "open_stream", lambda _: Recorder())
    monkeypatch.setattr(sys.modules["endless_training"], "open_stream", lambda _: Recorder())
    return gpu.Bench(torch.device("cpu"), gpu.random_faces(16, 8), gpu.QUICK, gpu.Budget(600))


def run_gpu_benchmark(gpu, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu_speed.py", "--device", "cpu", "--quick", *arguments])
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "none")  # so that what the benchmark sets is undone
    monkeypatch.setenv("TRITON_CACHE_DIR", "none")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # needs no C++ compiler
    gpu.main()


def test_without_a_gpu_the_gpu_benchmark_prints_its_plan(tmp_path):
    command = [sys.executable, str(SCRIPT.with_name("gpu_speed.py")), "--out", str(tmp_path / "out")]
    no_gpu = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run(command, env=no_gpu, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "no GPU here" in done.stdout and not (tmp_path / "out").exists()
    networks = [f"resnet18, {stem} stem, batch 128" for stem in STEMS]
    networks += ["baseline_cnn, batch 128", "efficientnet_b0, batch 64", "efficientnet_b0, batch 256"]
    networks += ["vgg16, batch 128", "local_global, batch 32"]
    phases = ["captured, alone", "eager", "4 at once", "shares", "2 and 6 at once", "DataLoader"]
    places = {phase: [done.stdout.index(f"{network}: {phase}") for network in networks] for phase in phases}
    assert all(max(places[a]) < min(places[b]) for a, b in itertools.pairwise(phases[1:]))
    middle, efficientnet = "resnet18, middle stem, batch", "efficientnet_b0, batch 64"
    last = [f"{middle} 256: kernels", f"{efficientnet}: kernels"]
    last += [f"{name}: {what}" for what in ("cudnn", "torch.compile") for name in (f"{middle} 128", efficientnet)]
    order = [done.stdout.index(line) for line in last]
    assert order == sorted(order) and order[0] > max(places["DataLoader"])


def test_a_quick_run_on_a_cpu_fills_all_tables_of_the_gpu_benchmark(gpu, monkeypatch, tmp_path, capsys):
    run_gpu_benchmark(gpu, monkeypatch, "--seconds", "600", "--out", str(tmp_path))
    read = {name: pd.read_csv(tmp_path / "tables" / f"{name}.csv") for name in gpu.COLUMNS}
    for name, table in read.items():
        assert table.columns.tolist() == [column for column in gpu.COLUMNS[name] if column != "problems"]
        assert (table.select_dtypes("number").drop(columns="batch") > 0).all(axis=None), name
    (row,) = read[gpu.NETWORKS].to_dict("records")
    assert row["times the DataLoader"] == pytest.approx(row["captured"] / row["DataLoader"])
    kernels = read[gpu.KERNELS]
    assert kernels["rank"].tolist() == list(range(1, 13)) and kernels["us per step"].is_monotonic_decreasing
    assert kernels.kernel.str.contains("conv").any() and kernels["share of GPU time, %"].sum() <= 100.01
    printed = capsys.readouterr().out
    for name in gpu.COLUMNS:
        text = (tmp_path / "tables" / f"{name}.md").read_text()
        assert f"torch {torch.__version__}" in text and "n = 64 random training images" in text
        assert text.split("\n\n")[1].strip() in printed
    assert "Skipped" not in printed and "baseline_cnn, batch 4: times the DataLoader" in printed


def test_a_run_that_is_cut_short_leaves_its_rows(gpu, monkeypatch, tmp_path, capsys):
    def interrupted(*_):
        yield {"eager": 123}
        raise KeyboardInterrupt

    monkeypatch.setitem(gpu.KINDS, "eager", gpu.Kind("eager", gpu.NETWORKS, 0, interrupted))
    with pytest.raises(KeyboardInterrupt):
        run_gpu_benchmark(gpu, monkeypatch, "--out", str(tmp_path))
    (row,) = pd.read_csv(tmp_path / "tables" / "gpu_networks.csv").to_dict("records")
    assert row["captured"] > 0 and row["eager"] == 123 and math.isnan(row["DataLoader"])
    printed = capsys.readouterr().out
    assert "baseline_cnn, batch 4: captured, alone: precision" in printed and "| baseline_cnn |" in printed


def test_rows_are_written_before_the_next_measurement_begins(gpu, bench, monkeypatch):
    written = []
    bench.write = lambda bench: written.append(bench.tables.frames()[gpu.NETWORKS].captured.tolist())
    seen = []

    def measured(_, network):
        seen.append(written[-1] if written else None)
        yield {"captured": len(seen)}

    monkeypatch.setitem(gpu.KINDS, "captured", gpu.Kind("captured", gpu.NETWORKS, 0, measured))
    gpu.do_all(bench, [gpu.Job("captured", tiny_network(gpu, name)) for name in "abc"])
    assert seen == [None, [1], [1, 2]] and written[-1] == [1, 2, 3]


def test_what_does_not_fit_into_the_time_is_skipped_and_named(gpu, bench, monkeypatch):
    done = []

    def measured(_, network):
        done.append(network.name)
        yield {"captured": 1}

    for kind, guess in (("captured", 1), ("eager", 100), ("4", 1)):
        monkeypatch.setitem(gpu.KINDS, kind, gpu.Kind(kind, gpu.NETWORKS, guess, measured))
    bench.budget = gpu.Budget(50)
    jobs = [gpu.Job(kind, tiny_network(gpu, kind)) for kind in ("captured", "eager", "4")]
    gpu.do_all(bench, jobs)
    assert done == ["captured", "4"] and bench.skipped == [jobs[1]]
    assert "Skipped for lack of time: eager, batch 4: eager." in gpu.summary(bench)


def test_a_kind_is_expected_to_take_as_long_as_its_longest_measurement(gpu):
    budget = gpu.Budget(50)
    assert budget.fits("captured", 1)
    budget.took("captured", 60)
    budget.took("captured", 2)
    assert not budget.fits("captured", 1) and budget.fits("eager", 1)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no alarm")
def test_a_measurement_ends_when_the_time_is_over(gpu, bench, monkeypatch):
    def endless(*_):
        yield {"captured": 5}
        time.sleep(120)

    monkeypatch.setitem(gpu.KINDS, "captured", gpu.Kind("captured", gpu.NETWORKS, 0, endless))
    alarm, start = signal.getsignal(signal.SIGALRM), time.monotonic()
    bench.budget = gpu.Budget(0.5)
    jobs = [gpu.Job("captured", tiny_network(gpu, name)) for name in "ab"]
    gpu.do_all(bench, jobs)
    assert time.monotonic() - start < 60 and bench.skipped == [jobs[1]]
    (row,) = bench.tables.frames()[gpu.NETWORKS].to_dict("records")
    assert row["captured"] == 5 and row["problems"] == "captured: the time was over"
    assert signal.getsignal(signal.SIGALRM) == alarm


def test_a_network_that_fails_gives_a_row_with_the_reason(gpu, bench, monkeypatch):
    def too_large():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    networks = [tiny_network(gpu, "large", build=too_large), tiny_network(gpu, "small")]
    gpu.do_all(bench, [gpu.Job(kind, network) for network in networks for kind in ("captured", "eager", "4")])
    table = bench.tables.frames()[gpu.NETWORKS].set_index("network")
    assert table.problems["large"] == (
        "captured, alone: OutOfMemoryError: CUDA out of memory.; eager: OutOfMemoryError: CUDA out of memory.; "
        "4 at once: RuntimeError: it was not captured alone"
    )
    assert table.problems.isna()["small"] and (table.loc["small", ["captured", "eager", "4 at once"]] > 0).all()


def test_what_was_measured_before_a_failure_is_kept_and_memory_is_given_back(gpu, bench, monkeypatch):
    job = gpu.Job("2, 6", tiny_network(gpu))
    bench.tables.put(gpu.NETWORKS, job.network, {"captured": 10})
    captured = gpu.Group.captured

    def only_two(group, count):
        if count > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return captured(group, count)

    monkeypatch.setattr(gpu.Group, "captured", only_two)
    gpu.do(bench, job)
    (row,) = bench.tables.frames()[gpu.NETWORKS].to_dict("records")
    assert row["2 at once"] > 0 and math.isnan(row["6 at once"]) and "out of memory" in row["problems"]
    assert not bench.groups


def test_trainings_are_kept_only_while_memory_suffices(gpu, bench, monkeypatch):
    network, device = tiny_network(gpu), SimpleNamespace(device=torch.device("cuda"))
    gpu.do(bench, gpu.Job("captured", network))
    assert list(bench.groups) == [network.label]
    for free, is_short in ((39, True), (41, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 80))
        assert gpu.Bench.is_short_of_memory(device) == is_short
    gpu.do(bench, gpu.Job("2, 6", network))
    assert not bench.groups  # they are not needed any more
    monkeypatch.setattr(gpu.Bench, "is_short_of_memory", lambda _: True)
    gpu.do(bench, gpu.Job("eager", network))
    assert not bench.groups


def test_a_network_that_cannot_be_captured_is_not_timed_as_if_it_were(gpu, bench, monkeypatch):
    class Refusing(CpuStream):
        def capture(self, step):
            print("this network cannot be recorded as a CUDA graph (operation not permitted): training goes on")
            return step

    monkeypatch.setattr(sys.modules["endless_training"], "open_stream", lambda _: Refusing())
    gpu.do(bench, gpu.Job("captured", tiny_network(gpu)))
    (row,) = bench.tables.frames()[gpu.NETWORKS].to_dict("records")
    assert "cannot be recorded as a CUDA graph (operation not permitted)" in row["problems"]
    assert math.isnan(row["captured"])


def test_a_training_goes_on_beyond_its_epoch(gpu, bench):
    network = tiny_network(gpu)  # four steps an epoch
    run = bench.group(network).run(0)
    for _ in range(3):
        run.advance(run.step)
    before = run.model[2].weight.clone()
    run.capture()  # warms up with three steps, from the first batch on
    assert torch.equal(run.model[2].weight, before) and run.capture_seconds > 0
    positions = []
    for _ in range(9):
        run.advance(run.replay)
        positions.append(int(run.step.position))
    assert positions == [1, 2, 3, 4, 1, 2, 3, 4, 1]
    assert all(run.launch_seconds() > 0 for _ in range(4)) and int(run.step.position) == 1
    assert not torch.equal(run.model[2].weight, before)


def test_several_at_once_take_turns_with_models_and_streams_of_their_own(gpu, bench):
    network = tiny_network(gpu)
    bench.tables.put(gpu.NETWORKS, network, {"captured": 10})
    runs = bench.group(network).captured(4)
    replays = [run.replay for run in runs]
    found = list(gpu.measure_at_once(bench, network, counts=(4,), in_threads=True))
    assert found[0]["4 at once"] > 0 and found[0]["capture again, s"] > 0 and found[1]["4 at once, threads"] > 0
    assert len({run.calls for run in runs}) == 1
    assert len({id(run.stream) for run in runs}) == len({id(run.model) for run in runs}) == 4
    assert bench.group(network).captured(2) == runs[:2]
    assert [run.replay for run in runs] == replays  # nothing is captured twice


def test_speed_counts_the_images_of_all_trainings(gpu, bench, monkeypatch):
    monkeypatch.setattr(bench, "steady_seconds", lambda call, _: call() or 0.5)
    runs = bench.group(tiny_network(gpu)).captured(3)
    assert bench.images_per_second(runs) == 3 * 4 / 0.5


def test_steady_seconds_times_as_many_calls_as_it_takes(gpu, bench, monkeypatch):
    calls = []
    monkeypatch.setattr(gpu, "seconds_per_call", lambda call, n, _: ([call() for _ in range(n)], 0.01)[1])
    for at_least, timed in ((0.3, 30), (0, 1)):
        calls.clear()
        assert bench.steady_seconds(lambda: calls.append(1), at_least) == 0.01
        assert len(calls) == 1 + 1 + timed  # the first, one to guess by, those that count


def test_shares_are_relative_to_the_captured_step_and_epoch(gpu, bench, monkeypatch):
    network = tiny_network(gpu)
    bench.tables.put(gpu.NETWORKS, network, {"captured": 100})
    (run,) = bench.group(network).captured(1)
    for _ in range(4):  # the end of the epoch: there is no next batch
        run.advance(run.replay)
    monkeypatch.setattr(bench, "steady_seconds", lambda call, _: call() or 0.002)
    augmentation, validation = gpu.measure_shares(bench, network)
    assert augmentation["augmentation, %"] == pytest.approx(100 * 0.002 / (4 / 100))
    assert validation["validation, %"] == pytest.approx(100 * 0.002 / (16 / 100))


def test_kernels_of_a_gpu_are_ranked_without_what_is_no_kernel(gpu):
    def event(key, microseconds, count=6, device=DeviceType.CUDA):
        times = {"self_device_time_total": microseconds, "self_cpu_time_total": 999}
        return SimpleNamespace(key=key, count=count, device_type=device, **times)

    events = [
        event("void at::native::elementwise<" + "x" * 200, 30),
        event("cudnn_conv", 60, count=3),
        event("cudaLaunchKernel", 0, device=DeviceType.CPU),
        event("Optimizer.step#SGD.step", 500),
        *(event(f"small {i}", 0.5) for i in range(20)),
    ]
    rows = list(gpu.kernel_rows(events, 3, torch.device("cuda")))
    assert [row["rank"] for row in rows] == list(range(1, 13))
    assert rows[0]["kernel"] == "cudnn_conv" and rows[1]["kernel"].startswith("elementwise<xxx")
    assert len(rows[1]["kernel"]) == 80
    assert (rows[0]["calls per step"], rows[0]["us per call"], rows[0]["us per step"]) == (1, 20, 20)
    assert rows[0]["share of GPU time, %"] == pytest.approx(60)
    with pytest.raises(RuntimeError, match="saw no kernel"):
        list(gpu.kernel_rows(events[2:3], 3, torch.device("cuda")))


def test_cudnn_benchmark_is_on_for_its_measurement_only(gpu, bench, monkeypatch):
    states = []
    monkeypatch.setattr(gpu, "captured_speed", lambda *_: (states.append(torch.backends.cudnn.benchmark), 1.0))
    list(gpu.measure_cudnn(bench, tiny_network(gpu)))
    assert states == [False, True] and not torch.backends.cudnn.benchmark


def test_where_torch_compile_fails_the_row_says_so(gpu, bench, monkeypatch):
    def no_compiler(_):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "none")
    monkeypatch.setenv("TRITON_CACHE_DIR", "none")
    network = tiny_network(gpu)
    bench.tables.put(gpu.CUDNN, network, {"captured": 10})
    gpu.do(bench, gpu.Job("compile", network))
    (row,) = bench.tables.frames()[gpu.COMPILE].to_dict("records")
    assert row["problems"] == "RuntimeError: Failed to find C compiler" and row["captured"] == 10
    assert math.isnan(row["captured, compiled"])


def test_aims_of_the_gpu_benchmark_are_judged(gpu):
    rows = [
        {"network": "efficientnet_b0", "batch": 64, "captured": 9_000, "4 at once": 30_000, "validation, %": 4.9},
        {"network": "efficientnet_b0", "batch": 256, "captured": 50_000, "4 at once": 61_000, "validation, %": 5.1},
        {"network": "baseline_cnn", "batch": 128, "captured": 200_000},
    ]
    frame = pd.DataFrame(rows).reindex(columns=gpu.COLUMNS[gpu.NETWORKS])
    frame["times the DataLoader"] = [7.9, 8.0, math.nan]
    said = "\n".join(gpu.judge(frame))
    assert "efficientnet_b0: images/s in all 61,000.0 (met), aim at least 60,000" in said
    assert "baseline_cnn: images/s in all 200,000.0 (MISSED), aim at least 300,000" in said
    assert "resnet18, middle stem: images/s in all not measured, aim at least 80,000" in said
    assert "efficientnet_b0, batch 64: times the DataLoader 7.9 (MISSED)" in said
    assert "efficientnet_b0, batch 256: times the DataLoader 8.0 (met)" in said
    assert "batch 64: validation, % of an epoch 4.9 (met)" in said and "of an epoch 5.1 (MISSED)" in said
    assert "baseline_cnn, batch 128: times the DataLoader not measured" in said


def test_tables_of_one_benchmark_leave_those_of_the_other(gpu, benchmark, bench, tmp_path):
    benchmark.publish_tables(
        {name: (pd.DataFrame({"a": [1]}), "A.") for name in benchmark.TABLES}, tiny_faces(), "cpu", "CPU", tmp_path
    )
    bench.tables.put(gpu.NETWORKS, tiny_network(gpu), {"captured": 10})
    gpu.publish_bench(bench, tmp_path, "full")
    bench.tables.rows[gpu.NETWORKS].clear()
    bench.tables.put(gpu.CUDNN, tiny_network(gpu), {"captured": 10})
    gpu.publish_bench(bench, tmp_path, "full")
    names = sorted(path.stem for path in (tmp_path / "tables").glob("*.csv"))
    assert names == sorted([*benchmark.TABLES, gpu.CUDNN])
    benchmark.publish_tables({}, tiny_faces(), "cpu", "CPU", tmp_path)
    assert [path.stem for path in (tmp_path / "tables").glob("*.csv")] == [gpu.CUDNN]


def test_quick_runs_of_the_gpu_benchmark_are_not_published_among_the_results(gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "do_all", lambda *_: pytest.fail("it started to measure"))
    with pytest.raises(SystemExit) as stopped:
        run_gpu_benchmark(gpu, monkeypatch, "--out", str(PROJECT_ROOT / "reports"))
    assert stopped.value.code == 2 and "full runs only" in capsys.readouterr().err
