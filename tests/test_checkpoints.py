"""Files of weights and of runs: they come back whole, and what does not fit or is not safe is refused."""

import os
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from fer_utils.augment import Augment
from fer_utils.data import constants
from fer_utils.errors import TrainingError
from fer_utils.models import build_model, weights
from fer_utils.models.weights import load_classifier, load_weights, save_weights
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
    with pytest.raises(TrainingError, match=r"cannot be built here .*no architecture 'Small'"):
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
    with pytest.raises(TrainingError, match="missing or damaged"):
        load_weights(Small(), tmp_path / "evil.pt")
    torch.save({"weights": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(TrainingError, match="missing or damaged"):
        load_weights(Small(), tmp_path / "evil.pt")
    assert read_checkpoint(tmp_path / "evil.pt") is None
    assert not (tmp_path / "was_run").exists()


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
