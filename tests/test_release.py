"""The compact network that ships with the project: it is what its card says, and ONNX gives the same answers."""

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

SHIPPED = next(release.FOLDER.glob("*.safetensors"))


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


def test_onnx_gives_the_same_logits_for_any_number_of_faces(tmp_path):
    model, faces = load_classifier(SHIPPED), load_sample().images[:33]
    release.export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 33):
        (logits,) = session.run(["logits"], {"pixels": faces[:n]})
        assert np.abs(logits - predict_logits(model, faces[:n], "cpu")).max() < 1e-4


def test_shipped_network_is_small_and_found_where_nothing_was_trained(tmp_path):
    assert SHIPPED.stat().st_size < 10e6
    assert find_artifact(tmp_path, release.NOTEBOOK, release.WEIGHTS) in (
        SHIPPED, PROJECT_ROOT / "outputs" / "my_run" / "checkpoints" / release.WEIGHTS
    )  # fmt: skip


def test_card_repeats_the_published_report(as_committed):
    text = (release.FOLDER / "README.md").read_text(encoding="utf8")
    speed = pd.DataFrame({"with": [], "ms": []})
    expected = release.card(SHIPPED, speed)
    assert text.split("Time on a CPU")[0] == expected.split("Time on a CPU")[0]


def test_lines_of_code_in_the_card_run_as_they_stand(monkeypatch):
    monkeypatch.chdir(PROJECT_ROOT)
    code = (release.FOLDER / "README.md").read_text(encoding="utf8").split("```python\n")[1].split("```")[0]
    names = {"images": load_sample().images[:3]}
    exec(code, names)
    assert names["logits"].shape == (3, 7)


def test_shipped_network_has_the_published_accuracy(real_archive):
    images, labels = load_data(real_archive).subset("test")
    summary = pd.read_csv(PROJECT_ROOT / "reports" / "summary.csv").set_index(["model", "split"])
    right = predict_logits(load_classifier(SHIPPED), images, "cpu").argmax(1) == labels
    assert right.mean() == pytest.approx(summary.accuracy[release.MODEL, "test"], abs=1e-3)


@pytest.mark.parametrize(("name", "table"), [("08_gradcam", "08_claim"), ("09_live_demo", "09_latency")])
def test_notebook_runs_where_no_other_has_run(needs_face_mesh, tmp_path, name, table):
    [sample] = [stage.params["sample"] for stage in STAGES if stage.name == name]
    params = sample | {"data": "sample", "device": "cpu", "out": str(tmp_path), "inputs": str(tmp_path / "nothing")}
    notebook = PROJECT_ROOT / "notebooks" / f"{name}.ipynb"
    run_notebook(notebook, tmp_path / "executed.ipynb", params, 300, io.StringIO())
    assert len(pd.read_csv(tmp_path / "tables" / f"{table}.csv"))
