"""Faces: found, cropped as FER2013's were, drawn and followed; uploads and videos of every kind read or refused."""

import csv
import io
import os
import re
import subprocess
import sys
import weakref
import zlib
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fer_utils.data import EMOTIONS
from fer_utils.data.sample_faces import MESH_FILE, make_sample
from fer_utils.errors import DataError
from fer_utils.paths import ASSETS, PROJECT_ROOT
from fer_utils.vision import detector, landmarks, photos, video
from fer_utils.vision.detector import Face

ROOT = Path(__file__).resolve().parent.parent


def a_face(left, top=0.0, side=10.0, score=0.9):
    return Face((left, top, side, side), score, (left, top, side), np.empty((0, 2)))


# --- Find -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [["short"], ["full"], detector.RANGES])
def test_the_face_in_the_portrait_is_found_where_it_is(portrait, finder, ranges):
    (face,) = finder(portrait, ranges=ranges)
    mesh = np.loadtxt(MESH_FILE, delimiter=",", skiprows=1)[:, -3:-1]
    eyes = np.array([mesh[list(points)].mean(0) for points in landmarks.EYES["contour"]])
    assert np.abs(face.points[:2] - eyes).max() < 12  # pixels, of a face 130 wide
    left, top, side = face.square
    assert ((eyes > [left, top]) & (eyes < [left + side, top + side])).all()
    assert 0.5 < face.score <= 1 and face.points.shape == (6, 2)


def test_several_faces_come_from_left_to_right_each_with_its_own_box(portrait, finder):
    both = finder(np.hstack([portrait, portrait[:, ::-1]]))
    assert len(both) == 2 and both[0].box[0] < 512 <= both[1].box[0]
    assert photos.crop_faces(np.hstack([portrait, portrait[:, ::-1]]), both).shape == (2, 48, 48)


def test_both_interfaces_of_mediapipe_find_the_same(needs_face_mesh, portrait):
    [(box, score, points)] = detector._with_tasks("short")(portrait)  # 0.10.21 refuses the other detector here
    [(older_box, older_score, older_points)] = detector._with_solutions("short")(portrait)
    assert np.abs(np.subtract(box, older_box)).max() < 1 and score == pytest.approx(older_score, abs=1e-4)
    assert np.abs(np.subtract(points, older_points)).max() < 1e-4


def test_the_weights_here_are_those_of_mediapipe(needs_face_mesh):
    folder = metadata.distribution("mediapipe").locate_file("mediapipe/modules/face_detection")
    for file, _ in detector.WEIGHTS.values():
        assert (ASSETS / "mediapipe" / file).read_bytes() == (Path(folder) / file).read_bytes()


def test_no_face_is_found_where_there_is_none(finder):
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)
    assert finder(np.zeros_like(noise)) == [] and finder(noise) == []


def test_confidence_leaves_faces_out(portrait, finder):
    assert finder(portrait, confidence=0.999) == []


def test_of_overlapping_boxes_the_surer_one_stays():
    kept = detector.without_doubles([a_face(100), a_face(0, score=0.6), a_face(2, score=0.8)])
    assert [(face.box[0], face.score) for face in kept] == [(2, 0.8), (100, 0.9)]


def test_overlap_by_hand():
    assert detector.overlap((0, 0, 2, 2), (1, 0, 2, 2)) == pytest.approx(2 / 6)
    assert detector.overlap((0, 0, 2, 2), (5, 5, 2, 2)) == 0 and detector.overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1


def test_missing_mediapipe_is_said_and_the_whole_image_taken(monkeypatch):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    finder, problem = detector.start_finder()
    assert problem.startswith("Faces cannot be found: MediaPipe is not installed; install")
    (face,) = finder(np.zeros((30, 50, 3), np.uint8))
    assert face.square == (10, 0, 30) and np.isnan(face.score)


BROKEN = {
    "incomplete": ("", "cannot import name 'Image' from 'mediapipe'"),
    "crashes": ("import os; os.abort()", "crashed"),
}


@pytest.mark.parametrize("source, message", BROKEN.values(), ids=BROKEN)
def test_broken_mediapipe_is_said_and_the_whole_image_taken(needs_mediapipe, tmp_path, monkeypatch, source, message):
    (tmp_path / "mediapipe").mkdir()
    (tmp_path / "mediapipe" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)  # the worker searches where its parent does
    finder, problem = detector.start_finder()
    assert message in problem and "\n" not in problem
    assert finder is detector.whole_image


def test_a_script_needs_no_guard(tmp_path):
    script = "from fer_utils.vision.mediapipe_process import start_workers\nprint('begin')\n"
    (tmp_path / "script.py").write_text(script + "print(start_workers(1).submit(abs, -1).result())\n")
    command = [sys.executable, tmp_path / "script.py"]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (run.stdout, run.stderr, run.returncode) == ("begin\n1\n", "", 0)


def test_this_process_needs_neither_torch_nor_mediapipe():
    modules = ", ".join(f"fer_utils.vision.{name}" for name in ("detector", "photos", "video"))
    code = f"import sys, {modules}; sys.exit(any(name in sys.modules for name in ('torch', 'mediapipe')))"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode == 0


# --- Crop and smooth --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", detector.RANGES)
def test_a_box_where_fer2013_has_it_gives_back_fer2013s_crop(name):
    ratio, below = detector.BOX_IN_CROP[name]
    side = 100 * ratio
    box = (50 - side / 2, 50 + 100 * below - side / 2, side, side)
    assert detector.crop_square(box, ratio, below) == pytest.approx((0, 0, 100))


def test_sample_faces_survive_the_way_through_photo_and_crop(finder):
    images = make_sample(n_per_class=4).images
    shown = [
        cv2.resize(cv2.copyMakeBorder(image, 24, 24, 24, 24, cv2.BORDER_REPLICATE), (576, 576)) for image in images
    ]
    photos = [cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) for image in shown]
    squares = np.array([face.square for photo in photos for face in finder(photo)[:1]]) / 6 - [24, 24, 0]
    assert len(squares) > 20
    left, top, side = np.median(squares, axis=0)
    assert max(abs(left), abs(top), abs(side - 48)) < 8  # pixels of 48; the sample's crops are not FER2013's


def test_crops_are_gray_squares_of_48():
    image = np.zeros((100, 120, 3), np.uint8)
    image[20:68, 30:78] = np.random.default_rng(0).integers(0, 256, (48, 48, 1))
    (crop,) = photos.crop_faces(image, [a_face(30, 20, 48)])
    assert crop.dtype == np.uint8 and np.array_equal(crop, image[20:68, 30:78, 0])
    assert photos.crop_faces(image, []).shape == (0, 48, 48)


def test_beyond_the_border_the_last_pixels_are_repeated():
    image = np.repeat(np.arange(96, dtype=np.uint8)[None, :, None], 96, 0).repeat(3, 2)
    (crop,) = photos.crop_faces(image, [a_face(-48, 0, 96)])
    assert (crop[:, :24] == 0).all() and crop[0, -1] > 40


def test_large_faces_are_averaged_not_sampled():
    stripes = np.zeros((480, 480, 3), np.uint8)
    stripes[:, ::2] = 255
    (crop,) = photos.crop_faces(stripes, [a_face(0, 0, 480)])
    assert np.abs(crop.astype(int) - 128).max() <= 1


def test_smoothing_follows_each_face_and_forgets_those_that_are_gone():
    smooth = video.Smoother(keep=0.75)
    happy, sad, fear = np.eye(7)[3], np.eye(7)[4], np.eye(7)[2]
    assert np.allclose(smooth([a_face(0), a_face(50)], np.array([happy, sad])), [happy, sad])
    moved = smooth([a_face(1), a_face(51), a_face(90)], np.array([sad, sad, fear]))
    assert np.allclose(moved, [0.75 * happy + 0.25 * sad, sad, fear])  # each its own past; a new face has none
    assert smooth([], np.empty((0, 7))).shape == (0, 7)
    assert np.allclose(smooth([a_face(0)], sad[None]), [sad])  # it was gone for a frame: no stale answer


# --- Draw -------------------------------------------------------------------------------------------------------------


def test_each_face_has_its_own_box_and_label(monkeypatch):
    texts = []
    monkeypatch.setattr(photos, "write_text", lambda picture, text, corner, scale: texts.append((text, corner)))
    image = np.zeros((200, 640, 3), np.uint8)
    picture = photos.draw_faces(image, [a_face(10, 50), a_face(200, 60, score=0.7)], np.eye(7)[[3, 0]] * 0.8)
    assert texts == [
        *[("1 happy 80%", (10, 50)), ("face 0.90", (10, 84))],
        *[("2 angry 80%", (200, 60)), ("face 0.70", (200, 94))],
    ]
    assert tuple(picture[50, 10]) == photos.CYAN == tuple(picture[60, 200]) and not image.any()


def test_without_a_detector_there_is_no_confidence(monkeypatch):
    texts = []
    monkeypatch.setattr(photos, "write_text", lambda picture, text, corner, scale: texts.append(text))
    image = np.zeros((200, 300, 3), np.uint8)
    photos.draw_faces(image, detector.whole_image(image), np.eye(7)[[3]])
    photos.draw_faces(image, [a_face(10)])
    assert texts == ["1 happy 100%", "1", "face 0.90"]


def test_no_face_is_said(monkeypatch):
    texts = []
    monkeypatch.setattr(photos, "write_text", lambda picture, text, corner, scale: texts.append(text))
    photos.draw_faces(np.zeros((200, 300, 3), np.uint8), [])
    assert texts == ["no face"]


@pytest.mark.parametrize("corner", [(-50, -50), (500, 500), (100, 50)])
def test_labels_stay_inside_the_picture(corner):
    inside, moved = np.zeros((2, 100, 200, 3), np.uint8)
    photos.write_text(inside, "1 happy 80%", (50, 50), 1)
    photos.write_text(moved, "1 happy 80%", corner, 1)
    assert (moved > 150).sum() == (inside > 150).sum() > 100  # all of the text is there


# --- Uploads ----------------------------------------------------------------------------------------------------------


def as_file(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def half_red():
    """Left half red, right half blue, 40x20."""
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    return image


def test_forty_megapixels_are_read_and_reduced():
    image = photos.read_image(as_file(Image.new("RGB", (8000, 5000), "gray"), "JPEG"), "large.jpg")
    assert image.shape == (1280, 2048, 3) and abs(int(image.mean()) - 128) < 2


@pytest.mark.parametrize("mode, kind", [("RGB", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("P", "PNG"), ("P", "GIF")])
def test_colors_survive(mode, kind):
    image = photos.read_image(as_file(half_red().convert(mode), kind), "upload").astype(int)
    assert image.shape == (20, 40, 3)
    assert np.abs(image[10, 5] - [255, 0, 0]).max() < 40 and np.abs(image[10, 35] - [0, 0, 255]).max() < 40


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode):
    kind = "TIFF" if mode in "IF" else "PNG"
    image = Image.new(mode, (40, 20))
    assert photos.read_image(as_file(image, kind), "upload").shape == (20, 40, 3)


def test_sixteen_bits_are_stretched_and_not_cut_off():
    ramp = Image.fromarray(np.tile(np.linspace(0, 40000, 256).astype(np.uint16), (20, 1)))
    image = photos.read_image(as_file(ramp, "PNG"), "deep.png")
    assert image[0, 0, 0] == 0 and image[0, -1, 0] == 255 and abs(int(image[0, 128, 0]) - 128) <= 1


def test_transparent_parts_become_white():
    image = half_red().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    assert (photos.read_image(as_file(image, "PNG"), "logo.png") == 255).all()


def test_turned_photos_come_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image = photos.read_image(as_file(half_red(), "JPEG", exif=exif), "phone.jpg").astype(int)
    assert image.shape == (40, 20, 3) and image[5, 10, 0] > 200 and image[35, 10, 2] > 200


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_picture_is_taken(kind):
    content = as_file(half_red(), kind, save_all=True, append_images=[Image.new("RGB", (40, 20), "green")])
    assert photos.read_image(content, "moving")[10, 5, 0] > 200


def bomb():
    """A PNG of a few bytes whose header announces 20,000 x 20,000 pixels."""
    content = bytearray(as_file(Image.new("L", (8, 8)), "PNG"))
    content[16:24] = (20000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def broken_tiff():
    """A TIFF that says where its pixels lie by a tag of a wrong type."""
    content = bytearray(as_file(Image.new("L", (8, 8)), "TIFF"))
    entry = content.index((273).to_bytes(2, "little") + (4).to_bytes(2, "little"))  # StripOffsets, LONG
    content[entry + 2] = 5  # RATIONAL
    return bytes(content)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8))
REFUSED = {
    "text": (b"dear diary", "is not an image that can be read here; use one of JPEG, PNG"),
    "empty": (b"", "is not an image that can be read here"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image that can be read here"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image that can be read here"),
    "half a jpeg": (as_file(NOISE, "JPEG")[:9000], "is truncated or damaged"),
    "half a png": (as_file(NOISE, "PNG")[:9000], "is truncated or damaged"),
    "bomb": (bomb(), "has more than 89 megapixels; make it smaller"),
    "tiff without strips": (broken_tiff(), "is truncated or damaged"),
    "too many bytes": (bytes(photos.MAX_BYTES + 1), "has more than 256 MB"),
}


@pytest.mark.parametrize("content, reason", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_by_name(content, reason):
    with pytest.raises(DataError, match=reason) as caught:
        photos.read_image(content, "holiday.jpg")
    assert str(caught.value).startswith("holiday.jpg ") and "\n" not in str(caught.value)


# --- Videos -----------------------------------------------------------------------------------------------------------


def make_video(path: Path, frames: int, size=(160, 120)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*video.CODEC), 15, size)
    for i in range(frames):
        writer.write(np.full((*size[::-1], 3), 10 * (i % 20), np.uint8))
    writer.release()
    return path


def answer_some(found_in):
    """Frames are numbered from 1; those in `found_in` hold two faces, the others none."""
    numbers = iter(range(1, 10**6))

    def answer(frame):
        n = 2 if next(numbers) in found_in else 0
        return [a_face(10), a_face(50)][:n], np.eye(7)[[3, 4]][:n]

    return answer


def test_video_in_annotated_video_and_table_out(tmp_path, capfd):
    source = make_video(tmp_path / "film.webm", 12)
    capfd.readouterr()
    film, table = tmp_path / "out" / "film.webm", tmp_path / "out" / "film.csv"
    shares = []
    done = video.annotate_video(source, film, table, answer_some({2, 5}), lambda _, share: shares.append(share))
    rows = list(csv.DictReader(table.open()))
    assert capfd.readouterr().err == "", "OpenCV's chatter would stand in the notebook"
    assert done == 12 and len(shares) == 12 and shares == sorted(shares) and shares[-1] == 1
    assert [(row["frame"], row["face"]) for row in rows] == [("2", "1"), ("2", "2"), ("5", "1"), ("5", "2")]
    assert [float(row["seconds"]) for row in rows] == pytest.approx([1 / 15, 1 / 15, 4 / 15, 4 / 15], abs=0.001)
    assert list(rows[0])[3:] == ["left", "top", "width", "height", "score", *EMOTIONS]
    assert float(rows[1]["sad"]) == 1 and float(rows[1]["left"]) == 50
    copy = cv2.VideoCapture(str(film))
    sizes = [frame.shape for there, frame in iter(copy.read, (False, None)) if there]
    assert sizes == [(120, 160, 3)] * 12 and copy.get(cv2.CAP_PROP_FPS) == pytest.approx(15)
    assert sorted(path.name for path in film.parent.iterdir()) == ["film.csv", "film.webm"]


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_boxes_in_a_video_have_the_color_of_the_page(emotion):
    css = (PROJECT_ROOT / "fer_utils" / "demo" / "app.css").read_text()
    [light] = re.findall(rf"--{emotion}: light-dark\(#(\w+),", css)
    frame = np.zeros((120, 160, 3), np.uint8)
    picture = video.draw_predictions(frame, [a_face(50)], np.eye(7)[[EMOTIONS.index(emotion)]])
    colored = (picture == list(bytes.fromhex(light))).all(2)
    assert colored.sum() > 300 and not frame.any()


@pytest.mark.parametrize("left", [-20, 155])
def test_labels_in_a_video_stay_inside(left):
    frame, happy = np.zeros((120, 160, 3), np.uint8), np.eye(7)[[3]]
    pictures = [video.draw_predictions(frame, [a_face(x)], happy) for x in (50, left)]
    # The edges of letters have a color between that of the bar and that of the ink.
    letters = [(p.any(2) & (p != video.COLORS["happy"][0]).any(2)).sum() for p in pictures]
    assert letters[0] == letters[1] > 20


def test_a_long_video_needs_no_more_memory_than_a_short_one(tmp_path):
    alive, most = [], []

    def progress(picture, done):
        alive.append(weakref.ref(picture))
        most.append(sum(ref() is not None for ref in alive))
        return False

    source = make_video(tmp_path / "film.webm", 60)
    video.annotate_video(source, tmp_path / "a.webm", tmp_path / "a.csv", answer_some(()), progress)
    assert len(most) == 60 and max(most) <= 2


def test_a_stopped_or_failed_video_leaves_earlier_results_and_nothing_half_written(tmp_path):
    source = make_video(tmp_path / "film.webm", 12)
    film, table = tmp_path / "out" / "film.webm", tmp_path / "out" / "film.csv"
    film.parent.mkdir()
    film.write_text("earlier")

    def failing(frame):
        raise RuntimeError("broken")

    assert video.annotate_video(source, film, table, answer_some({1}), lambda _, share: share > 0.4) == 0
    with pytest.raises(RuntimeError, match="broken"):
        video.annotate_video(source, film, table, failing)
    assert [path.name for path in film.parent.iterdir()] == ["film.webm"] and film.read_text() == "earlier"


def test_a_video_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(DataError, match=r"absent/a.webm cannot be written; check the permissions"):
        video.open_video(tmp_path / "absent" / "a.webm", 15, (64, 48))


@pytest.mark.parametrize("content", [None, b"", b"no film", as_file(NOISE, "PNG")[:300]])
def test_what_is_no_video_is_refused_by_name(tmp_path, content, capfd):
    source = tmp_path / "film.mp4"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(DataError, match=r"^film.mp4 is missing, or not a video that can be read here"):
        video.annotate_video(source, tmp_path / "a.webm", tmp_path / "a.csv", answer_some(()))
    assert {path.name for path in tmp_path.iterdir()} <= {"film.mp4"}
