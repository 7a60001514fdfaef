"""Landmarks on the embedded sample, whose true landmarks are known, and everything that can go wrong on the way."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers import tiny_faces

from fer_utils import paths, plots
from fer_utils.data.sample_faces import make_sample
from fer_utils.errors import DataError
from fer_utils.paths import find_artifact
from fer_utils.vision import landmarks
from fer_utils.vision.landmarks import (
    ATTEMPTS,
    EYES,
    Attempt,
    Landmarks,
    label_landmarks,
    load_landmarks,
    mirror_points,
)
from fer_utils.vision.mediapipe_process import LandmarksUnavailable

ROOT = Path(__file__).resolve().parent.parent
N = 84


@pytest.fixture(scope="module")
def sample():
    return make_sample(n_per_class=N // 7)


@pytest.fixture(scope="module")
def labeled(needs_face_mesh, sample):
    return label_landmarks(sample.images, workers=2)


def same(a: Landmarks, b: Landmarks) -> bool:
    arrays = [np.array_equal(a.points, b.points, equal_nan=True), np.array_equal(a.mask, b.mask)]
    return all(arrays) and np.array_equal(a.method, b.method) and a.fingerprint == b.fingerprint


# --- What it finds ----------------------------------------------------------------------------------------------------


def test_sample_faces_are_found_where_they_are(sample, labeled):
    assert labeled.points.shape == (N, 4, 2) and labeled.points.dtype == np.float32
    assert labeled.mask.mean() >= 0.975
    error = 48 * np.linalg.norm(labeled.points - sample.landmarks, axis=2)[labeled.mask]
    assert np.median(error, axis=0).max() < 1.2 and error.max() < 6  # pixels
    assert set(labeled.method[labeled.mask]) <= set(map(str, ATTEMPTS))
    assert labeled.mediapipe == metadata.version("mediapipe")


@pytest.mark.parametrize("eyes", sorted(set(EYES) - {"contour"}))  # each process must see the same order
def test_all_definitions_of_an_eye_center_lie_in_the_eye(sample, labeled, eyes):
    other = label_landmarks(sample.images[:14], eyes=eyes)
    apart = 48 * np.linalg.norm(other.points - labeled.points[:14], axis=2)[other.mask]
    assert 0 < apart[:, :2].mean() < 1 and apart[:, 2:].max() == 0  # pixels


def test_mirror_images_get_mirrored_points(sample, labeled):
    mirrored = label_landmarks(sample.images[:, :, ::-1])
    apart = 48 * np.linalg.norm(mirror_points(mirrored.points) - labeled.points, axis=2)
    assert np.nanmedian(apart) < 0.6
    assert np.nanmedian(48 * np.linalg.norm(mirrored.points - labeled.points, axis=2)) > 2  # without swapping: wrong


def test_mirror_points_twice_changes_nothing():
    points = np.random.default_rng(0).random((5, 4, 2)).astype(np.float32)
    assert mirror_points(points).dtype == np.float32
    assert np.allclose(mirror_points(mirror_points(points)), points)
    assert np.allclose(mirror_points(points)[:, 0], [1, 0] + points[:, 1] * [-1, 1])


@pytest.mark.parametrize("attempt", [*ATTEMPTS, Attempt(pad=0, enlarge=1), Attempt(border="edge")], ids=str)
def test_attempts_give_points_back_where_they_were(attempt):
    image = np.zeros((48, 48), np.uint8)
    image[10:12, 30:32] = 255  # its middle is x = 31, y = 11
    shown = attempt.prepare(image)
    y, x = np.nonzero(shown[:, :, 0] > 180)
    middle = np.array([x.mean() + 0.5, y.mean() + 0.5]) / shown.shape[0]
    restored = attempt.restore(np.tile(middle, (4, 1)))
    assert np.allclose(48 * restored, [31, 11], atol=0.1)


def test_later_attempts_take_over_where_earlier_ones_find_nothing(sample, labeled):
    hopeless = Attempt(pad=300, enlarge=1)  # the face is far too small
    result = label_landmarks(sample.images[:5], attempts=(hopeless, Attempt(mirrored=True)))
    assert result.mask.all() and set(result.method) == {"black 16 px, x6, mirrored"}
    assert (48 * np.linalg.norm(result.points - labeled.points[:5], axis=2)).max() < 3


# --- Workers and resuming ---------------------------------------------------------------------------------------------


def test_number_of_workers_changes_nothing(sample, labeled, monkeypatch):
    monkeypatch.setattr(landmarks, "CHUNK", 25)
    lines = []
    assert same(label_landmarks(sample.images, workers=2, progress=lines.append), labeled)
    assert same(label_landmarks(sample.images, workers=1, progress=lines.append), labeled)
    assert lines[-1].startswith(f"labeled {N}/{N}  with a face ") and lines[-1].endswith("left 0 s")


RUN = """\
import sys
from pathlib import Path
from fer_utils.vision import landmarks
from fer_utils.data.sample_faces import make_sample
landmarks.CHUNK = 4
landmarks.label_landmarks(make_sample(12).images, workers=1, cache=Path(sys.argv[1]))
"""


def test_a_killed_run_goes_on_where_it_was(sample, labeled, tmp_path, monkeypatch):
    (tmp_path / "run.py").write_text(RUN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, "run.py", "cache"], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("cache/*.npz"))) < 3:
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    workers = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert workers and not psutil.wait_procs(workers, timeout=10)[1], "workers outlive their parent"

    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/*.npz")}
    assert 3 <= len(kept) < N // 4
    monkeypatch.setattr(landmarks, "CHUNK", 4)
    lines = []
    assert same(label_landmarks(sample.images, cache=tmp_path / "cache", progress=lines.append), labeled)
    assert lines[0] == f"{4 * len(kept)}/{N} were labeled by an earlier run"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_damaged_chunks_are_labeled_again(sample, labeled, tmp_path, monkeypatch):
    monkeypatch.setattr(landmarks, "CHUNK", N // 3)
    label_landmarks(sample.images, cache=tmp_path)
    truncated, corrupt, _ = sorted(tmp_path.iterdir())
    truncated.write_bytes(truncated.read_bytes()[:-100])
    middle = corrupt.stat().st_size // 3
    corrupt.write_bytes(corrupt.read_bytes()[:middle] + b"\0\0\0\0" + corrupt.read_bytes()[middle + 4 :])
    lines = []
    assert same(label_landmarks(sample.images, cache=tmp_path, progress=lines.append), labeled)
    assert lines[0] == f"{N // 3}/{N} were labeled by an earlier run"
    monkeypatch.setattr(landmarks, "_run_workers", lambda chunks, *_: iter(chunks and pytest.fail("not repaired")))
    assert same(label_landmarks(sample.images, cache=tmp_path), labeled)


def test_the_cache_distinguishes_images_and_settings(needs_face_mesh, sample, tmp_path):
    plain = label_landmarks(sample.images[:5], cache=tmp_path)
    assert not same(plain, label_landmarks(sample.images[5:10], cache=tmp_path))
    assert not same(plain, label_landmarks(sample.images[:5], cache=tmp_path, eyes="iris"))
    assert set(label_landmarks(sample.images[:5], cache=tmp_path, attempts=[Attempt(pad=9)]).method) == {
        "black 9 px, x6"
    }


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_constant_images_and_noise_are_masked(sample, labeled, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (48, 48))
    gray = [np.full((48, 48), level) for level in (0, 60, 128, 200, 255)]
    result = label_landmarks(np.stack([sample.images[0], noise, *gray]).astype(np.uint8))
    assert result.mask.tolist() == [True] + 6 * [False]
    assert np.isnan(result.points[1:]).all() and set(result.method[1:]) == {""}
    assert np.array_equal(result.points[0], labeled.points[0])
    assert capfd.readouterr().err == ""  # nothing of what MediaPipe logs


def test_no_face_at_all_is_said(needs_face_mesh):
    with pytest.raises(DataError, match="no face was found in any of the 3 images"):
        label_landmarks(np.zeros((3, 48, 48), np.uint8))


def test_missing_mediapipe_is_said(sample, monkeypatch):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    with pytest.raises(LandmarksUnavailable, match=r"^MediaPipe is not installed; install the version named in"):
        label_landmarks(sample.images[:2])


BROKEN = {
    "without the mesh": ("", r"no longer brings the face mesh; install mediapipe==0\.10\.21"),
    "not importable": ("raise OSError('libGL.so.1 is missing')", r"does not work \(OSError: libGL.so.1 is missing\)"),
    "crashes": ("import os; os.abort()", "crashed in a worker process, or ran out of memory"),
}


@pytest.mark.parametrize("source, message", BROKEN.values(), ids=BROKEN)
def test_broken_mediapipe_is_said(needs_mediapipe, sample, tmp_path, monkeypatch, source, message):
    (tmp_path / "mediapipe").mkdir()
    (tmp_path / "mediapipe" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)  # workers search where their parent does
    with pytest.raises(LandmarksUnavailable, match=message) as caught:
        label_landmarks(sample.images[:2])
    assert "\n" not in str(caught.value) and caught.value.__cause__ is None  # no traceback of the worker


def test_without_labelling_mediapipe_is_not_imported():
    code = "import sys, fer_utils.vision.landmarks, fer_utils.plots; sys.exit('mediapipe' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode == 0


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def faces():
    return tiny_faces(per_class=1)


@pytest.fixture
def table(faces):
    """Made-up landmarks of `faces`; the first has none."""
    points = np.random.default_rng(0).random((21, 4, 2)).astype(np.float32)
    points[0] = np.nan
    method = np.array(["", *["black 16 px, x6"] * 20])
    return Landmarks(points, method != "", method, landmarks.image_fingerprint(faces.images), "0.10.21")


def test_saved_landmarks_come_back(table, faces, tmp_path):
    table.save(tmp_path / "landmarks.npz")
    loaded = load_landmarks(tmp_path / "landmarks.npz", faces)
    assert same(loaded, table) and loaded.mediapipe == "0.10.21"
    assert loaded.mask.dtype == bool and isinstance(loaded.fingerprint, str)
    table.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "landmarks.npz").read_bytes()


def test_other_labels_need_no_new_landmarks(table, faces, tmp_path):
    table.save(tmp_path / "landmarks.npz")
    assert same(load_landmarks(tmp_path / "landmarks.npz", replace(faces, labels=faces.labels[::-1])), table)


def test_missing_damaged_and_foreign_tables_are_refused(table, faces, tmp_path):
    path = tmp_path / "landmarks.npz"
    with pytest.raises(DataError, match=r"landmarks.npz is not in .*; run the notebook 02_landmark_labelling"):
        load_landmarks(path, faces)
    table.save(path)
    with pytest.raises(DataError, match="belongs to other images"):
        load_landmarks(path, tiny_faces(per_class=1, seed=1))
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[:-100], whole[:300] + b"\0\0\0\0" + whole[304:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="is damaged; run the notebook 02_landmark_labelling again"):
            load_landmarks(path, faces)


def test_published_files_are_found_where_each_kind_of_run_leaves_them(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PROJECT_ROOT", tmp_path)
    places = {  # inputs -> where the file lies
        "reports": "outputs/checkpoints/02_labels/landmarks.npz",
        "outputs/sample/reports": "outputs/sample/checkpoints/02_labels/landmarks.npz",
        "outputs/my_run": "outputs/my_run/checkpoints/landmarks.npz",
    }
    assert find_artifact("reports", "02_labels", "landmarks.npz") == tmp_path / places["reports"]  # none yet
    by_hand = tmp_path / places["outputs/my_run"]
    for file in reversed(places.values()):
        assert find_artifact("reports", "02_labels", "landmarks.npz") in (tmp_path / places["reports"], by_hand)
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    for inputs, file in places.items():
        assert find_artifact(inputs, "02_labels", "landmarks.npz") == tmp_path / file
    (tmp_path / places["reports"]).unlink()
    assert find_artifact("reports", "02_labels", "landmarks.npz") == by_hand
    for inputs in ("reports", "outputs/sample/reports"):
        comes_along = tmp_path / inputs / "derived" / "landmarks.npz"  # goes before what an older version left
        comes_along.parent.mkdir(parents=True)
        comes_along.touch()
        assert find_artifact(inputs, "02_labels", "landmarks.npz") == comes_along


def test_points_are_drawn_where_they_are(sample):
    points = np.array([[[0, 0], [1, 1], [0.5, 0.5], [np.nan, np.nan]]])
    figure = plots.plot_landmarks(sample.images[:1], points)
    offsets = figure.axes[0].collections[0].get_offsets()
    assert np.allclose(np.ma.getdata(offsets)[:3], [[-0.5, -0.5], [47.5, 47.5], [23.5, 23.5]])
    assert figure.axes[0].get_xlim() == (-0.5, 47.5)
