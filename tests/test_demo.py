"""The demo in Python: what it answers to the questions of its page. The page itself is tested in test_browser.py."""

import json
from unittest.mock import Mock

import cv2
import nbformat
import numpy as np
import pytest
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from jupyter_server.services.kernels.websocket import KernelWebsocketHandler
from traitlets.utils.importstring import import_item

from fer_utils import classifiers
from fer_utils.data.constants import EMOTIONS
from fer_utils.data.sample_faces import draw_examples
from fer_utils.demo import widget
from fer_utils.models import build_model
from fer_utils.models.weights import load_classifier, save_weights
from fer_utils.paths import PROJECT_ROOT
from fer_utils.vision import detector
from fer_utils.vision.photos import to_jpeg
from fer_utils.vision.video import open_video

PICTURE = to_jpeg(np.full((60, 80, 3), (200, 100, 0), np.uint8))
QUESTION = {"id": "a-1", "network": "baseline_cnn", "heatMap": False, "name": "party.jpg", "live": False}


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """A folder with a network, in a project that has no others."""
    monkeypatch.setattr("fer_utils.paths.PROJECT_ROOT", tmp_path)
    monkeypatch.setattr("fer_utils.paths.ASSETS", tmp_path)
    save_weights(build_model("baseline_cnn"), tmp_path / "run" / "checkpoints" / "baseline_cnn_seed0.pt")
    return tmp_path / "run"


@pytest.fixture
def ask(monkeypatch):
    """A function that asks a demo without a face detector, and returns all of its messages."""
    monkeypatch.setattr(detector, "start_finder", lambda: (detector.whole_image, "Faces cannot be found."))
    demos = {}

    def exchange(inputs, kind, *buffers, **question):
        demo = demos.setdefault(inputs, widget.Demo(inputs, "cpu"))
        sent = []
        monkeypatch.setattr(demo, "send", lambda content, parts=None: sent.append((content, parts)))
        demo._reply({**QUESTION, "kind": kind, **question}, [memoryview(part) for part in buffers])
        assert all(content["id"] == QUESTION["id"] for content, _ in sent)
        return sent

    return exchange


def test_page_opens_with_networks_examples_and_what_is_missing(ask, networks):
    [(opened, pictures)] = ask(networks, "open")
    assert [network["id"] for network in opened["networks"]] == ["baseline_cnn"]
    assert opened["networks"][0]["about"] == "Its training was not recorded; 2.5 million parameters."
    assert opened["notice"] == "Faces cannot be found." and len(pictures) == len(opened["examples"]) == 8
    assert all(cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).ndim == 3 for picture in pictures)


def test_networks_answer_alone_or_together(ask, networks):
    save_weights(build_model("baseline_cnn"), networks / "checkpoints" / "best_resnet18.pt")
    [(opened, _)] = ask(networks, "open")
    first, second, both = (network["id"] for network in opened["networks"])
    noise = to_jpeg(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    faces = [ask(networks, "predict", noise, network=name)[0][0]["faces"][0] for name in (first, second, both)]
    one, other, mean = (face["probs"] for face in faces)
    assert one != other and mean == pytest.approx(np.mean([one, other], axis=0))


def test_without_networks_the_page_says_what_to_do(ask, networks):
    [(opened, pictures)] = ask(networks / "nothing", "open")
    assert opened["networks"] == pictures == [] and classifiers.NO_CLASSIFIER in opened["notice"]


def test_shipped_networks_say_where_they_come_from():
    for path in (PROJECT_ROOT / "models").glob("*.safetensors"):
        assert "trained on FER2013 (28,709 images" in classifiers.describe_origin(load_classifier(path))


@pytest.mark.parametrize("live", [False, True])
def test_picture_in_faces_out(ask, networks, live):
    [(answer, (crops, maps, picture))] = ask(networks, "predict", PICTURE, live=live, heatMap=True)
    [face] = answer["faces"]
    assert face["box"] == pytest.approx([1 / 8, 0, 3 / 4, 1]) and face["detectorConfidence"] is None
    assert len(face["probs"]) == len(EMOTIONS) and sum(face["probs"]) == pytest.approx(1)
    assert len(crops) == len(maps) == 48 * 48 and bool(picture) != live and answer["ms"] > 0
    assert face["isSmall"] is False
    json.dumps(answer)  # as the message will be


def test_a_face_with_few_pixels_is_marked(ask, networks):
    [(answer, _)] = ask(networks, "predict", to_jpeg(np.full((47, 80, 3), 200, np.uint8)))
    assert answer["faces"][0]["isSmall"] is True


def test_bad_pictures_are_refused_by_name_and_the_next_one_works(ask, networks):
    assert "party.jpg is not an image" in ask(networks, "predict", b"no image")[0][0]["error"]
    assert "KeyError" in ask(networks, "predict", PICTURE, network="another")[0][0]["error"]
    assert "faces" in ask(networks, "predict", PICTURE)[0][0]


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.webm"
    writer = open_video(path, 15, (64, 48))
    for gray in range(12):
        writer.write(np.full((48, 64, 3), 10 * gray, np.uint8))
    writer.release()
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where uploaded videos lie."""
    (tmp_path / "videos").mkdir()
    monkeypatch.setattr(widget.tempfile, "tempdir", str(tmp_path / "videos"))
    return tmp_path / "videos"


def test_video_in_pieces_comes_back_annotated_and_is_deleted(ask, networks, film, folder):
    for piece in (film[:1000], film[1000:]):
        assert ask(networks, "piece", piece, video="v", name="../my film.webm") == [({"id": "a-1"}, [])]
    assert [path.name for path in folder.rglob("*.webm")] == ["my film.webm"]
    *progress, (done, (copy, table)) = ask(networks, "annotate", video="v", smoothing=True)
    assert done["frames"] == 12 and table.decode().count("\n") == 13 and copy[:4] == b"\x1aE\xdf\xa3"
    assert progress and all(0 < message["share"] <= 1 for message, _ in progress)
    assert list(folder.iterdir()) == []


def test_stopped_refused_and_too_large_videos_are_deleted(ask, networks, film, folder, monkeypatch):
    ask(networks, "piece", film, video="v")
    ask(networks, "stop", video="v")
    assert list(folder.iterdir()) == []
    ask(networks, "piece", b"no film", video="v")
    assert "party.jpg is missing, or not a video" in ask(networks, "annotate", video="v", smoothing=True)[0][0]["error"]
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(widget, "LARGEST_VIDEO", len(film) / 1e6)
    ask(networks, "piece", film, video="v")
    assert "cut it into pieces" in ask(networks, "piece", b"!", video="v")[0][0]["error"]
    assert list(folder.iterdir()) == []


def test_voila_sends_every_message_at_once(monkeypatch):
    settings = json.loads((PROJECT_ROOT / "voila.json").read_text())["Voila"]
    connection = import_item(settings["kernel_websocket_connection_class"])
    monkeypatch.setattr(ZMQChannelsWebsocketConnection, "connect", lambda self: "connected")
    handler = Mock(spec=KernelWebsocketHandler)
    assert connection(websocket_handler=handler).connect() == "connected"
    handler.set_nodelay.assert_called_once_with(True)


def test_examples_show_seven_different_faces():
    pictures = np.stack(draw_examples()).astype(int)
    assert pictures.shape == (7, 240, 240, 3)
    differences = [np.abs(pictures[i] - pictures[j]).max() for i in range(7) for j in range(i)]
    assert min(differences) > 50


def test_notebook_is_stripped_and_short():
    notebook = nbformat.read(PROJECT_ROOT / "notebooks" / "demo.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) == 1 and not code[0].outputs and code[0].execution_count is None
