"""The command that evaluates any classifier: checkpoints, ONNX files and tables of predictions, and what it refuses."""

import os

import numpy as np
import onnx
import pandas as pd
import pytest
from helpers import tiny_faces
from onnx import TensorProto, helper, numpy_helper

from fer_utils import evaluate
from fer_utils.data import EMOTIONS
from fer_utils.models import build_model
from fer_utils.models.weights import save_weights
from fer_utils.predict import Predictions, predict_logits

DATASET = tiny_faces()
IMAGES, LABELS = DATASET.subset("test")


@pytest.fixture(autouse=True)
def the_data_set_is_tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "load_data", lambda source: DATASET)
    monkeypatch.chdir(tmp_path)


def run(path, *options):
    return evaluate.main([str(path), "--out", "results", *options])


def summary():
    return pd.read_csv("results/summary.csv").iloc[0]


def write_onnx(path, channels=1, side=48, order=EMOTIONS, outputs=7, softmax=False):
    """A linear model: output k is the mean of row k of the picture, so that it can be followed by hand."""
    weights = np.zeros((channels * side * side, outputs), np.float32)
    rows = weights.reshape(channels, side, side, outputs)
    for k in range(outputs):
        rows[:, EMOTIONS.index(order[k]) if outputs == 7 else 0, :, k] = 1 / (channels * side)
    nodes = [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])]
    last = "logits"
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["probs"], axis=1))
        last = "probs"
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", channels, side, side])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", outputs])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_checkpoint_gives_the_numbers_of_its_logits(tmp_path, capsys):
    model = build_model("baseline_cnn")
    save_weights(model, tmp_path / "model.pt")
    assert run("model.pt") == 0
    predicted = predict_logits(model.eval(), IMAGES).argmax(1)
    assert summary().accuracy == pytest.approx(np.mean(predicted == LABELS)) and summary().n == len(LABELS)
    confusion = pd.read_csv("results/confusion_matrix.csv", index_col=0)
    assert np.trace(confusion.values) == (predicted == LABELS).sum() and confusion.values.sum() == len(LABELS)
    assert "accuracy without copies" in capsys.readouterr().out


@pytest.mark.parametrize("channels, side", [(1, 48), (3, 48), (3, 64)])
def test_an_onnx_model_is_shown_what_it_takes(tmp_path, channels, side):
    write_onnx(tmp_path / "model.onnx", channels, side)
    logits = evaluate.predict_onnx(tmp_path / "model.onnx", IMAGES, evaluate.OnnxOptions(0, "0-1", EMOTIONS))
    assert logits.shape == (len(IMAGES), 7)
    if side == 48:
        assert np.allclose(logits, IMAGES[:, :7].mean(2) / 255, atol=1e-5)


def test_scale_and_order_of_classes_are_the_models(tmp_path):
    order = tuple(reversed(EMOTIONS))
    write_onnx(tmp_path / "model.onnx", order=order)
    logits = evaluate.predict_onnx(tmp_path / "model.onnx", IMAGES, evaluate.OnnxOptions(0, "-1-1", order))
    assert np.allclose(logits, IMAGES[:, :7].mean(2) / 127.5 - 1, atol=1e-5)
    assert run("model.onnx", "--classes", ",".join(order)) == 0
    assert summary().accuracy == pytest.approx(np.mean(IMAGES[:, :7].mean(2).argmax(1) == LABELS))


def test_probabilities_become_logits(tmp_path):
    write_onnx(tmp_path / "model.onnx", softmax=True)
    logits = evaluate.predict_onnx(tmp_path / "model.onnx", IMAGES, evaluate.OnnxOptions(0, "0-1", EMOTIONS))
    assert np.allclose(np.exp(logits).sum(1), 1, atol=1e-4) and logits.min() < 0


def predictions_table():
    probs = np.full((len(LABELS), 7), 0.05)
    probs[np.arange(len(LABELS)), LABELS] = 0.7
    names = DATASET.names[DATASET.where("test")]
    return pd.DataFrame(probs, columns=EMOTIONS).assign(name=names)


def test_a_table_of_predictions_in_any_order(tmp_path):
    predictions_table().sample(frac=1, random_state=0).to_csv(tmp_path / "mine.csv", index=False)
    assert run("mine.csv") == 0
    assert summary().accuracy == 1 and summary().confidence == pytest.approx(0.7, abs=1e-4)
    assert summary().ece == pytest.approx(0.3, abs=1e-4)


def test_published_logits_of_several_seeds(tmp_path):
    rng = np.random.default_rng(0)
    logits = {split: rng.normal(size=(2, len(DATASET.where(split)), 7)) for split in ("val", "test")}
    Predictions(logits["val"], logits["test"], (0, 1), DATASET.fingerprint).save(tmp_path / "mine.npz")
    assert run("mine.npz", "--split", "val") == 0
    expected = np.mean(logits["val"].argmax(2) == DATASET.subset("val")[1])
    assert summary().seeds == 2 and summary().accuracy == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda t: t.iloc[1:], "has no prediction for 1 images of test, such as row 56"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "names row 56 twice"),
        (lambda t: t.drop(columns="fear"), "lacks the columns fear"),
        (lambda t: t.assign(fear=np.inf), "not finite numbers"),
        (lambda t: t.assign(fear="0_3"), "mine.csv cannot be read as a table"),
        (lambda t: t.assign(fear="\u0663"), "mine.csv cannot be read as a table"),
        (lambda t: t.assign(fear="much"), "mine.csv cannot be read as a table"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, capsys, change, expected):
    change(predictions_table()).to_csv(tmp_path / "mine.csv", index=False)
    assert run("mine.csv") == 2
    assert expected in capsys.readouterr().err and not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "write, expected",
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"no onnx"), "cannot be loaded as ONNX"),
        (lambda path: write_onnx(path, outputs=8), "it must give seven"),
        (lambda path: write_onnx(path, channels=2), "it must take"),
        (lambda path: os.mkfifo(path), "is a pipe"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(tmp_path, capsys, write, expected):
    write(tmp_path / "model.onnx")
    assert run("model.onnx") == 2
    assert expected in capsys.readouterr().err


def test_unknown_classes_and_kinds_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run("model.onnx", "--classes", "happy,sad")
    assert ended.value.code == 2 and "must name these seven" in capsys.readouterr().err
    (tmp_path / "model.npz").write_bytes(b"no npz")
    assert run("model.npz") == 2 and "model.npz is damaged or holds no predictions" in capsys.readouterr().err
    (tmp_path / "model.txt").write_text("")
    assert run("model.txt") == 2 and "of no known kind" in capsys.readouterr().err


@pytest.mark.parametrize(
    "block, expected",
    [
        (lambda folder: folder.write_text("mine"), "results is not a folder; name another one"),
        (lambda folder: (folder / "recall.csv").mkdir(parents=True), "results cannot be written (Is a directory)"),
    ],
)
def test_results_that_cannot_be_written_are_one_sentence(tmp_path, capsys, block, expected):
    predictions_table().to_csv(tmp_path / "mine.csv", index=False)
    block(tmp_path / "results")
    assert run("mine.csv") == 2
    said = capsys.readouterr().err
    assert said.startswith("evaluate: ") and expected in said and said.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_noticed_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "load_data", lambda source: pytest.fail("the data are read first"))
    (tmp_path / "results").write_text("mine")
    assert run("mine.csv") == 2
