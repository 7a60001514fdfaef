"""Files of weights and of runs: they come back whole, and what does not fit or is not safe is refused."""

import json
import os
import pickle
import zipfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fer_utils.augment import Augment
from fer_utils.data import constants
from fer_utils.errors import TrainingError
from fer_utils.models import build_model, weights
from fer_utils.models.weights import load_backbone, load_classifier, load_weights, save_compact, save_weights
from fer_utils.training import TrainConfig
from fer_utils.training.checkpoints import checkpoint_file, read_checkpoint, write_checkpoint


class Small(nn.Module):
    """One layer, and a norm for its buffers."""

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, width), nn.BatchNorm1d(width)


# ---- Weights ----


def test_saved_weights_come_back(tmp_path):
    model = Small()
    model.norm.running_mean.fill_(3.0)
    save_weights(model, tmp_path / "model.pt")
    back = load_weights(Small(), tmp_path / "model.pt")
    assert all(map(torch.equal, back.state_dict().values(), model.state_dict().values()))
    assert not back.training and os.listdir(tmp_path) == ["model.pt"]


def test_weights_of_another_architecture_or_class_order_are_refused(tmp_path, monkeypatch):
    save_weights(Small(), tmp_path / "small.pt")
    with pytest.raises(TrainingError, match="network: Small there, baseline_cnn here"):
        load_weights(build_model("baseline_cnn"), tmp_path / "small.pt")
    with pytest.raises(TrainingError, match=r"layer\.weight: \[7, 4\] there, \[5, 4\] here"):
        load_weights(Small(5), tmp_path / "small.pt")
    monkeypatch.setattr(weights, "EMOTIONS", tuple(reversed(constants.EMOTIONS)))
    with pytest.raises(TrainingError, match="classes"):
        load_weights(Small(), tmp_path / "small.pt")


@pytest.mark.parametrize("options", [{}, {"attention": "gates", "stem": "stride2"}], ids=str)
def test_classifier_is_rebuilt_from_its_file_alone(tmp_path, options):
    path, model = tmp_path / "model.pt", build_model("resnet18", **options).eval()
    save_weights(model, path)
    faces = torch.randn(2, 1, 48, 48)
    assert torch.equal(load_classifier(path)(faces), model(faces))


def test_file_of_something_else_is_no_classifier(tmp_path):
    save_weights(Small(), tmp_path / "small.pt")
    with pytest.raises(TrainingError, match=r"cannot be used here .*no architecture 'Small'"):
        load_classifier(tmp_path / "small.pt")


def test_missing_weights_name_the_file(tmp_path):
    with pytest.raises(TrainingError, match=r"nothing\.pt is missing"):
        load_weights(Small(), tmp_path / "nothing.pt")


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["CANARY"],)


def test_malicious_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY", str(tmp_path / "was_run"))
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"weights": Evil()}, protocol=2))
    with pytest.raises(TrainingError, match="is damaged"):
        load_weights(Small(), tmp_path / "evil.pt")
    torch.save({"weights": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(TrainingError, match="is damaged"):
        load_weights(Small(), tmp_path / "evil.pt")
    assert read_checkpoint(tmp_path / "evil.pt") is None
    assert not (tmp_path / "was_run").exists()


# ---- Files that lie ----


def lie(**changes):
    """A state of save_weights of a baseline CNN with some entries replaced."""
    model = build_model("baseline_cnn")
    return {"spec": model.spec, "classes": list(constants.EMOTIONS), "weights": model.state_dict()} | changes


LIES = {
    "a list": [1, 2],
    "spec is a list": lie(spec=[]),
    "spec is empty": lie(spec={}),
    "options are a list": lie(spec={"name": "baseline_cnn", "options": [1]}),
    "name is a list": lie(spec={"name": ["x"], "options": {}}),
    "an option is text": lie(spec={"name": "small_resnet", "options": {"width": "wide"}}),
    "an option is negative": lie(spec={"name": "small_resnet", "options": {"width": -5}}),
    "a network of terabytes": lie(spec={"name": "small_resnet", "options": {"width": 10**7}}),
    "classes is None": lie(classes=None),
    "classes are of two kinds": lie(classes=[1, None]),
    "weights is None": lie(weights=None),
    "weights are text": lie(weights={"features.0.weight": "x"}),
    "no weights": lie(weights={}),
    "names of weights are numbers": lie(weights={1: torch.zeros(2)}),
    "an option is a tensor": lie(spec={"name": "baseline_cnn", "options": {"num_classes": torch.zeros(3)}}),
    "sparse weights": lie(weights={k: t.to_sparse() for k, t in build_model("baseline_cnn").state_dict().items()}),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("state", LIES.values(), ids=LIES)
def test_a_file_that_lies_about_its_content_is_refused_by_name(tmp_path, state):
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(TrainingError, match=r"model\.pt"):
        load_classifier(tmp_path / "model.pt")
    for load, model in ((load_weights, "baseline_cnn"), (load_backbone, "resnet18")):
        with pytest.raises(TrainingError, match=r"model\.pt"):
            load(build_model(model), tmp_path / "model.pt")


COMPACT_LIES = {
    "not JSON": {"spec": "{", "classes": "[]"},
    "nested without end": {"spec": "[" * 100_000, "classes": "[]"},
    "spec is a number": {"spec": "7", "classes": "[]"},
    "no classes": {"spec": json.dumps({"name": "baseline_cnn", "options": {}})},
    "nothing": None,
}


@pytest.mark.parametrize("about", COMPACT_LIES.values(), ids=COMPACT_LIES)
def test_a_compact_file_that_lies_is_refused_by_name(tmp_path, about):
    save_file(build_model("baseline_cnn").state_dict(), tmp_path / "model.safetensors", metadata=about)
    with pytest.raises(TrainingError, match=r"model\.safetensors is damaged"):
        load_classifier(tmp_path / "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("save, name", [(save_weights, "model.pt"), (save_compact, "model.safetensors")])
def test_weights_that_are_not_finite_are_refused(tmp_path, save, name, value):
    model = build_model("resnet18", stem="stride2")
    with torch.no_grad():
        model.backbone.layer1[0].bn1.running_var[3] = value
    save(model, tmp_path / name)
    for load in (load_classifier, lambda path: load_backbone(build_model("resnet18", stem="stride2"), path)):
        with pytest.raises(TrainingError, match=r"weights that are not finite.*layer1\.0\.bn1\.running_var"):
            load(tmp_path / name)


@pytest.mark.timeout(60)
def test_a_compressed_checkpoint_is_refused_as_a_bomb(tmp_path):
    save_weights(build_model("baseline_cnn"), tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as given, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for member in given.infolist():
            bomb.writestr(member.filename, given.read(member), zipfile.ZIP_DEFLATED)
    with pytest.raises(TrainingError, match=r"bomb\.pt is damaged \(it is compressed"):
        load_classifier(tmp_path / "bomb.pt")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_pipe_in_the_place_of_weights_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(TrainingError, match="is a pipe"):
        load_classifier(tmp_path / name)
    assert read_checkpoint(tmp_path / name) is None


# ---- States of a run ----


def test_the_state_before_is_kept_beside_the_newest(tmp_path):
    path = tmp_path / "run.pt"
    assert read_checkpoint(path) is None
    for epoch in (1, 2, 3):
        write_checkpoint({"epoch": epoch, "weights": torch.full((3,), float(epoch))}, path)
    assert read_checkpoint(path)["epoch"] == 3
    assert sorted(os.listdir(tmp_path)) == ["run.previous", "run.pt"]
    path.unlink()  # as when a run is killed between the two renamings
    assert read_checkpoint(path)["epoch"] == 2


@pytest.mark.parametrize("damage", [lambda whole: whole[:500], lambda whole: b"", lambda whole: b"<html>" * 200])
def test_a_damaged_state_is_named_and_the_one_before_is_read(tmp_path, capsys, damage):
    path = tmp_path / "run.pt"
    for epoch in (1, 2):
        write_checkpoint({"epoch": epoch}, path)
    path.write_bytes(damage(path.read_bytes()))
    assert read_checkpoint(path)["epoch"] == 1
    assert "run.pt cannot be read" in capsys.readouterr().out
    (tmp_path / "run.previous").write_bytes(b"nothing")
    assert read_checkpoint(path) is None


def test_writing_that_fails_leaves_the_state_before(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    write_checkpoint({"epoch": 1}, path)

    def disk_full(state, file):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space"):
        write_checkpoint({"epoch": 2}, path)
    assert read_checkpoint(path)["epoch"] == 1


CONFIG = TrainConfig()


@pytest.mark.parametrize(
    "config, label, data",
    [
        (CONFIG, "cnn", "abd"),
        (CONFIG, "cnn2", "abc"),
        (replace(CONFIG, epochs=4), "cnn", "abc"),
        (replace(CONFIG, seed=1), "cnn", "abc"),
        (replace(CONFIG, ema=0.9), "cnn", "abc"),
        (replace(CONFIG, augment=Augment(mixup=0.2)), "cnn", "abc"),
    ],
)
def test_checkpoint_names_change_with_model_settings_and_data(tmp_path, config, label, data):
    name = checkpoint_file(tmp_path, "cnn", CONFIG, "abc")
    assert name == checkpoint_file(tmp_path, "cnn", TrainConfig(), "abc")
    assert name != checkpoint_file(tmp_path, label, config, data)
