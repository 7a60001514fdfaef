"""The small network that ships with the project: it is what its card says, and ONNX gives the same answers."""

import io

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch

from fer_utils import release
from fer_utils.data import load_data
from fer_utils.data.fer2013 import load_sample
from fer_utils.errors import TrainingError
from fer_utils.models import build_model
from fer_utils.models.weights import load_classifier, save_compact
from fer_utils.paths import PROJECT_ROOT, find_artifact
from fer_utils.pipeline.execution import run_notebook
from fer_utils.pipeline.stages import STAGES
from fer_utils.predict import predict_logits


@pytest.mark.parametrize("name", ["baseline_cnn", "resnet18", "efficientnet_b0"])
def test_half_precision_changes_no_answer_that_is_clear(tmp_path, name):
    torch.manual_seed(0)
    model, faces = build_model(name).eval(), load_sample().images[:40]
    save_compact(model, tmp_path / "model.safetensors")
    before = predict_logits(model, faces, "cpu")
    after = predict_logits(load_classifier(tmp_path / "model.safetensors"), faces, "cpu")
    assert np.abs(after - before).max() < 0.02 and not np.array_equal(after, before)


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_damaged_compact_file_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(TrainingError, match=r"model\.safetensors is damaged"):
        load_classifier(tmp_path / "model.safetensors")


@pytest.fixture(scope="module")
def shipped():
    return load_classifier(release.COMPACT)


def run_onnx(path, faces):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"pixels": faces})[0]


def test_shipped_onnx_files_give_the_same_answers_for_any_number_of_faces(shipped):
    faces = load_sample().images[:200]
    logits = predict_logits(shipped, faces, "cpu")
    for n in (1, 200):
        assert np.abs(run_onnx(release.ONNX, faces[:n]) - logits[:n]).max() < 0.02
    agree = run_onnx(release.INT8, faces).argmax(1) == logits.argmax(1)
    assert agree.mean() > 0.95


def test_export_writes_half_precision_and_nothing_about_this_machine(shipped, tmp_path):
    release.export_onnx(shipped, tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    assert len(content) < 1.1 * release.COMPACT.stat().st_size and b".py" not in content
    faces = load_sample().images[:8]
    assert np.allclose(run_onnx(tmp_path / "model.onnx", faces), run_onnx(release.ONNX, faces), atol=1e-4)


def test_quantized_file_is_half_as_large_and_gives_nearly_the_same_answers(shipped, tmp_path, monkeypatch):
    faces = load_sample().images
    monkeypatch.setattr(release, "CALIBRATION_IMAGES", 32)
    release.quantize(shipped, faces, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size < 0.6 * release.COMPACT.stat().st_size
    answers = run_onnx(tmp_path / "model.onnx", faces[:100]).argmax(1)
    assert np.mean(answers == predict_logits(shipped, faces[:100], "cpu").argmax(1)) > 0.8


def test_release_needs_the_real_data(capsys):
    with pytest.raises(SystemExit):
        release.main(["--data", "sample"])
    assert "needs FER2013 itself" in capsys.readouterr().err


def test_shipped_network_is_small_and_found_where_nothing_was_trained(tmp_path):
    assert sum(path.stat().st_size for path in release.FOLDER.iterdir()) < 5e6
    assert find_artifact(tmp_path, release.NOTEBOOK, release.WEIGHTS) in (
        release.COMPACT, PROJECT_ROOT / "outputs" / "my_run" / "checkpoints" / release.WEIGHTS
    )  # fmt: skip


def test_card_repeats_the_published_report(as_committed, shipped):
    text = (release.FOLDER / "README.md").read_text(encoding="utf8")
    files = text.split("## Files\n\n")[1].split("\n\nThe first two files")[0]  # what only the release can measure
    assert all(path.name in files for path in (release.COMPACT, release.ONNX, release.INT8))
    assert text == release.card(shipped, files)


def test_lines_of_code_in_the_card_run_as_they_stand(monkeypatch):
    monkeypatch.chdir(PROJECT_ROOT)
    text = (release.FOLDER / "README.md").read_text(encoding="utf8")
    names = {"images": load_sample().images[:3]}
    for code in [part.split("```")[0] for part in text.split("```python\n")[1:]]:
        exec(code, names)
        assert names.pop("logits").shape == (3, 7)


def test_shipped_network_has_the_published_accuracy(real_archive, shipped):
    images, labels = load_data(real_archive).subset("test")
    recall = pd.read_csv(PROJECT_ROOT / "reports" / "tables" / "12_recall.csv").set_index("emotion")
    right = predict_logits(shipped, images, "cpu").argmax(1) == labels
    assert right.mean() == pytest.approx(recall.recall["all"], abs=1e-3)


@pytest.mark.parametrize(("name", "table"), [("08_gradcam", "08_claim"), ("09_live_demo", "09_latency")])
def test_notebook_runs_where_no_other_has_run(needs_face_mesh, tmp_path, name, table):
    [sample] = [stage.params["sample"] for stage in STAGES if stage.name == name]
    params = sample | {"data": "sample", "device": "cpu", "out": str(tmp_path), "inputs": str(tmp_path / "nothing")}
    notebook = PROJECT_ROOT / "notebooks" / f"{name}.ipynb"
    run_notebook(notebook, tmp_path / "executed.ipynb", params, 300, io.StringIO())
    assert len(pd.read_csv(tmp_path / "tables" / f"{table}.csv"))
