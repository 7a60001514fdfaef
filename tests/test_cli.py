"""The command fer: what it prints and writes, its exit codes, and what it hands to other programs."""

import io
import os
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fer_utils import cli, evaluate, faces
from fer_utils.data import EMOTIONS
from fer_utils.errors import TrainingError
from fer_utils.models import build_model
from fer_utils.vision import detector
from fer_utils.vision.video import open_video

NOTES = "Faces cannot be found.\nnet: its training was not recorded\n"


@pytest.fixture(autouse=True)
def in_a_folder_without_a_detector(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = build_model("baseline_cnn").eval()
    network.origin = {}
    predictor = faces.FacePredictor({"net": network}, "cpu", detector.whole_image)
    monkeypatch.setattr(faces, "load_predictor", lambda model, device: (predictor, "Faces cannot be found."))


def photo(path, side=60):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (side, side), "gray").save(path)
    return str(path)


@pytest.fixture
def film(tmp_path):
    writer = open_video(tmp_path / "film.webm", 10, (64, 48))
    for gray in range(12):
        writer.write(np.full((48, 64, 3), 10 * gray, np.uint8))
    writer.release()
    return "film.webm"


def test_photos_folders_and_videos_give_lines_a_table_and_copies(tmp_path, film, capsys):
    photo(tmp_path / "me.png"), photo(tmp_path / "album" / "me.jpg"), photo(tmp_path / "album" / "tiny.bmp", 30)
    code = cli.main(["predict", "me.png", "album", film, "me.png", "--csv", "out.csv", "--annotate", "out"])
    output, said = capsys.readouterr()
    assert code == 0
    assert [line.split(":")[0] for line in output.splitlines()] == ["me.png", "album/me.jpg", "album/tiny.bmp", film]
    assert "12 frames, 12 faces, most often" in output.splitlines()[-1]
    assert said.startswith(NOTES) and "album/tiny.bmp: 1 face may be too small" in said
    assert "film.webm: 12 faces" not in said, "a face of 48x48 pixels is large enough"
    table = pd.read_csv("out.csv")
    assert list(table)[:9] == [
        "picture",
        "frame",
        "seconds",
        "face",
        "x",
        "y",
        "width",
        "height",
        "detector_confidence",
    ]
    assert len(table) == 15 and table.frame.dropna().tolist() == list(range(1, 13))
    assert np.allclose(table[list(EMOTIONS)].sum(axis=1), 1, atol=1e-3)
    assert (table[list(EMOTIONS)].idxmax(axis=1) == table.label).all()
    copies = ["film_faces.webm", "me_faces.jpg", "me_faces2.jpg", "tiny_faces.jpg"]
    assert sorted(os.listdir("out")) == copies
    assert cv2.imread("out/me_faces.jpg").std() > 0  # a box is drawn


def test_one_bad_picture_does_not_lose_the_others(tmp_path, capsys):
    (tmp_path / "bad.jpg").write_text("no image")
    (tmp_path / "bad.mp4").write_text("no video")
    code = cli.main(["predict", "bad.jpg", "absent.jpg", "bad.mp4", photo(tmp_path / "good.png"), "--csv", "out.csv"])
    output, said = capsys.readouterr()
    assert code == 1 and output.startswith(f"{tmp_path}/good.png: 1 ") and len(pd.read_csv("out.csv")) == 1
    assert [line.split()[:2] for line in said.removeprefix(NOTES).splitlines()] == [
        ["fer:", "bad.jpg"], ["fer:", "absent.jpg"], ["fer:", "bad.mp4"]
    ]  # fmt: skip


def test_what_prevents_a_start_is_one_sentence_and_code_2(tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    good = photo(tmp_path / "good.png")
    assert cli.main(["predict", "empty"]) == 2
    assert capsys.readouterr().err.startswith("fer: empty holds no pictures")
    assert cli.main(["predict", good, "--csv", "absent/out.csv"]) == 2
    assert "absent/out.csv cannot be written" in capsys.readouterr().err

    def refuse(model, device):
        raise TrainingError(f"{model} is missing")

    monkeypatch.setattr(faces, "load_predictor", refuse)
    assert cli.main(["predict", good, "--model", "x.pt", "--csv", "out.csv"]) == 2
    assert capsys.readouterr().err == "fer: x.pt is missing\n" and not os.path.exists("out.csv")


def test_results_that_cannot_be_written_are_said_before_the_work(tmp_path, capsys):
    good = photo(tmp_path / "good.png")
    for options, expected in (
        (["--annotate", good], "good.png is not a folder; name another one"),
        (["--annotate", f"{good}/copies"], "good.png is not a folder; name another one"),
        (["--csv", str(tmp_path)], f"{tmp_path} cannot be written (Is a directory)"),
        (["--csv", f"{good}/faces.csv"], "faces.csv cannot be written (Not a directory)"),
    ):
        assert cli.main(["predict", good, *options]) == 2, options
        output, said = capsys.readouterr()
        assert said.removeprefix(NOTES).startswith("fer: ") and expected in said and not output


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a file that is always full")
def test_a_full_disk_is_said_before_the_work(tmp_path, capsys):
    assert cli.main(["predict", photo(tmp_path / "good.png"), "--csv", "/dev/full"]) == 2
    assert "fer: /dev/full cannot be written (No space left on device)" in capsys.readouterr().err


def test_a_copy_that_cannot_be_written_loses_no_other(tmp_path, capsys):
    (tmp_path / "out" / "a_faces.jpg").mkdir(parents=True)
    pictures = [photo(tmp_path / name) for name in ("a.png", "b.png")]
    assert cli.main(["predict", *pictures, "--annotate", "out"]) == 1
    assert "fer: out/a_faces.jpg cannot be written (Is a directory)" in capsys.readouterr().err
    assert (tmp_path / "out" / "b_faces.jpg").is_file()


@pytest.mark.parametrize("arguments", [[], ["predict"], ["predict", "a.jpg", "--cvs", "x"], ["dance"]])
def test_wrong_options_are_refused(arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_a_closed_pipe_ends_quietly(tmp_path, capfd, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert cli.main(["predict", photo(tmp_path / "good.png")]) == 141
    assert capfd.readouterr().err == NOTES


def test_ctrl_c_and_a_full_disk_are_said(tmp_path, capsys, monkeypatch):
    for error, code, message in ((KeyboardInterrupt(), 130, "interrupted"), (OSError("no space left"), 1, "no space")):
        monkeypatch.setattr(faces, "load_picture", lambda path, error=error: (_ for _ in ()).throw(error))
        assert cli.main(["predict", photo(tmp_path / "good.png")]) == code
        assert message in capsys.readouterr().err


def test_a_video_without_copies_is_only_read(film):
    before = set(os.listdir())
    assert cli.main(["predict", film]) == 0
    assert set(os.listdir()) == before


def test_small_faces_of_a_video_are_counted(tmp_path, capsys):
    writer = open_video(tmp_path / "small.webm", 10, (64, 46))
    for _ in range(3):
        writer.write(np.zeros((46, 64, 3), np.uint8))
    writer.release()
    assert cli.main(["predict", "small.webm"]) == 0
    assert "small.webm: 3 faces may be too small; below 48x48 pixels" in capsys.readouterr().err


def test_progress_is_one_line_in_a_terminal_and_rare_in_a_file(monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(clock))
    terminal, file = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True
    for stream in (terminal, file):
        progress = cli.Progress("film.mp4", stream)
        assert not any(progress(None, share) for share in (0.25, 0.5, 1.0))
    assert terminal.getvalue() == "\rfilm.mp4: 25%\r\rfilm.mp4: 50%\r\r" + " " * 14 + "\r"
    assert file.getvalue() == ""


def test_evaluate_and_webcam_get_their_own_options(monkeypatch):
    monkeypatch.setattr(evaluate, "main", lambda arguments: (arguments, 0)[1])
    assert cli.main(["evaluate", "model.pt", "--split", "val"]) == 0
    started = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: started.append(arguments))
    monkeypatch.setenv("JUPYTER_PATH", "/mine")
    cli.main(["webcam", "--no-browser", "--port", "8900"])
    options = ["-I", "-m", "voila", "notebooks/demo.ipynb", "--template=demo", "--no-browser", "--port", "8900"]
    assert started == [[sys.executable, *options]]
    page, mine = os.environ["JUPYTER_PATH"].split(os.pathsep)
    assert mine == "/mine" and os.path.isdir(f"{page}/voila/templates/demo") and os.path.isfile("voila.json")


def test_the_demo_page_needs_the_project(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "PROJECT_ROOT", tmp_path)
    assert cli.main(["webcam"]) == 2
    assert "does not hold notebooks/demo.ipynb" in capsys.readouterr().err
