"""The table of models that others publish: measured as ours are, and put beside what they claim."""

import sys
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import tiny_faces

from fer_utils.paths import PROJECT_ROOT

sys.path.insert(0, str(PROJECT_ROOT / "benchmarks"))
import peers

DATASET = tiny_faces()


def predict_by_first_pixel(model, images):
    """Probabilities that depend on the model's bytes and on each image."""
    predicted = (images[:, 0, 0] + model[0]) % 7
    return np.eye(7)[predicted] * 0.93 + 0.01


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    peer = replace(peers.PEERS[0], predict=predict_by_first_pixel)
    monkeypatch.setattr(peers, "PEERS", (peer,))
    monkeypatch.setattr(peers, "load_data", lambda source: DATASET)
    path = tmp_path / peer.wheel
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(peer.member, bytes([3]))
    return path


def test_a_peer_is_measured_on_both_splits_and_published(wheel, tmp_path, monkeypatch, capsys):
    out = tmp_path / "reports"
    monkeypatch.setattr(sys, "argv", ["peers.py", str(wheel), "--data", "x", "--out", str(out)])
    peers.main()
    table = pd.read_csv(out / "tables" / f"{peers.NAME}.csv").set_index("split")
    for split in ("val", "test"):
        images, labels = DATASET.subset(split)
        assert table.accuracy[split] == pytest.approx(np.mean((images[:, 0, 0] + 3) % 7 == labels))
    assert table.claimed.unique() == ["about 71 %"] and (out / "manifests" / f"{peers.NAME}.json").is_file()
    assert "about 71 %" in capsys.readouterr().out


def test_a_wheel_that_is_not_known_is_refused(wheel, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peers.py", "other.whl", "--data", "x"])
    with pytest.raises(SystemExit):
        peers.main()
    assert "no peer is known in other.whl" in capsys.readouterr().err
