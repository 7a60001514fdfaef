"""The benchmark of training speed: that it runs, that its tables are published, and that it compares like with like."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import tiny_faces

from fer_utils.augment import NO_AUGMENT, to_float
from fer_utils.data import PROJECT_ROOT
from fer_utils.pipeline.page import build_report
from fer_utils.pipeline.publish import Folders, publish
from fer_utils.report import Report

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
    assert all(f'id="table-{name}"' in page and f"Caption of {name}." in page for name in benchmark.TABLES)

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
