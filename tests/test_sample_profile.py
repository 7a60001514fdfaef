"""The whole course on the embedded sample, through ./run_all.sh, and what it leaves behind."""

import json
import os
import subprocess
import sys
import time

import nbformat
import pandas as pd
import pytest

from fer_utils.data import EMOTIONS
from fer_utils.data.fer2013 import load_sample
from fer_utils.paths import PROJECT_ROOT
from fer_utils.pipeline.planning import needed_files
from fer_utils.pipeline.publish import Folders, published_path
from fer_utils.pipeline.stages import STAGES
from fer_utils.predict import load_predictions

pytestmark = pytest.mark.timeout(3600)  # the whole course took 20 minutes on two cores without bf16
OUTPUTS = PROJECT_ROOT / "outputs" / "sample"
REPORTS = OUTPUTS / "reports"


def run_all(*arguments: str, cwd: os.PathLike) -> str:
    """What ./run_all.sh prints, started from another folder; the test fails when it does."""
    command = [str(PROJECT_ROOT / "run_all.sh"), "--profile", "sample", *arguments]
    environment = os.environ | {"FER_PYTHON": sys.executable}  # whatever runs the tests; no other is set up
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def finished_run(needs_face_mesh, tmp_path_factory):
    """One forced run of every stage, two at a time."""
    return run_all("--force", "--device", "cpu", "--jobs", "2", cwd=tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="module")
def faces():
    return load_sample()


def test_shows_its_progress(finished_run):
    assert "EMBEDDED SAMPLE" in finished_run and "forced" in finished_run and "04_baseline_cnn is done" in finished_run
    assert "epoch   1/8" in (PROJECT_ROOT / "outputs" / "work" / "sample" / "04_baseline_cnn.log").read_text()


def test_second_run_has_nothing_to_do(tmp_path):
    start = time.monotonic()
    assert "Nothing to do: all is up to date." in run_all("--device", "cpu", cwd=tmp_path)
    assert time.monotonic() - start < 15  # about two seconds on a quiet machine


def test_every_declared_file_is_published():
    folders = Folders.of(PROJECT_ROOT, "sample", custom=False)
    for stage in STAGES:
        for give in stage.gives:
            assert published_path(stage.name, give, folders).stat().st_size > 0
        assert (REPORTS / "manifests" / f"{stage.name}.json").is_file()


def test_every_needed_file_is_published():
    folders = Folders.of(PROJECT_ROOT, "sample", custom=False)
    for stage in STAGES:
        for need in stage.needs:
            for pattern, files in needed_files(stage, need, folders).items():
                assert files, f"{stage.name} needs {pattern} of {need}"
                assert all((PROJECT_ROOT / file).is_file() for file in files)


def test_class_counts_are_those_of_the_data(faces):
    counts = pd.read_csv(REPORTS / "tables" / "01_class_counts.csv")
    assert counts.groupby("split").n.sum().to_dict() == {"train": 700, "val": 154, "test": 154}
    assert set(counts.emotion) == set(EMOTIONS) and counts.n.sum() == len(faces.labels)


def test_summary_follows_from_the_published_logits(faces):
    summary = pd.read_csv(REPORTS / "summary.csv")
    assert set(summary.profile) == {"sample"} and set(summary.n) == {154}
    for row in summary.itertuples():
        predictions = load_predictions(REPORTS / "predictions" / f"{row.notebook[:2]}_{row.model}.npz", faces)
        hits = getattr(predictions, row.split).argmax(2) == faces.subset(row.split)[1]
        rounded_later = row.notebook.startswith("07")  # ensembles are rounded after their tables are computed
        assert hits.mean() == pytest.approx(row.accuracy, abs=0.01 if rounded_later else 1e-9)
        assert row.ci_low <= row.accuracy <= row.ci_high
    assert summary.accuracy.max() > 0.5, "the baseline has not learned the sample"


def test_every_table_of_sample_data_says_so():
    tables = list((REPORTS / "tables").glob("[01]*.md"))
    assert len(tables) >= 5
    for path in tables:
        assert "Embedded sample data: for trying out the code only." in path.read_text()


def test_executed_notebooks_are_complete_and_name_no_folder_of_this_machine():
    for stage in STAGES:
        path = OUTPUTS / f"{stage.name}.ipynb"
        assert path.stat().st_size < 2_000_000
        assert str(PROJECT_ROOT) not in path.read_text()
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                assert cell.execution_count and not any(output.output_type == "error" for output in cell.outputs)
        assert any(
            {"image/png", "image/jpeg"} & output.get("data", {}).keys()
            for cell in notebook.cells
            for output in cell.get("outputs", ())
        )


def test_report_page_shows_every_figure_and_table():
    page = (REPORTS / "report.html").read_text()
    for path in (REPORTS / "manifests").glob("*.json"):
        for artifact in json.loads(path.read_text())["artifacts"]:
            assert f'id="{artifact["kind"]}-{artifact["name"]}"' in page


def test_sample_numbers_never_reach_the_published_report():
    for path in (PROJECT_ROOT / "reports" / "manifests").glob("*.json"):
        manifest = json.loads(path.read_text())
        assert manifest["profile"] in ("cpu", "full") and "sample" not in manifest["data_note"]
