"""The demo without a server, in a real browser: it computes what the Python demo computes, and contacts nobody."""

import contextlib
import functools
import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from fer_utils import classifiers, release, web
from fer_utils.errors import DataError
from fer_utils.models.weights import load_classifier
from fer_utils.vision.detector import BOX_IN_CROP, FaceFinder, crop_square
from fer_utils.vision.photos import crop_faces

pytestmark = pytest.mark.timeout(600)
SQUARES = [(154.4, 115.2, 229.0), (-20.3, 310.6, 400.0), (230.6, 180.2, 31.0)]  # a face, beyond the border, enlarged


@pytest.fixture(scope="module")
def folder(tmp_path_factory, needs_mediapipe):
    """The page with all that it needs, as `--offline` builds it."""
    try:
        web.fetch_package(web.MEDIAPIPE, tmp_path_factory.mktemp("npm"))
    except DataError as error:
        pytest.skip(f"no runtime for the page: {error}")
    folder = tmp_path_factory.mktemp("web")
    assert web.main(["--offline", "--output", str(folder)]) == 0
    return folder


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(folder):
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()


@contextlib.contextmanager
def opened(launch, options, folder, prepare=lambda page: None):
    """The page in a browser: page, and the addresses of all requests and all complaints so far."""
    with serve(folder) as address, launch(*options).new_context(permissions=["camera"]) as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        urls, complaints = [], []
        page.on("request", lambda request: urls.append(request.url.removeprefix("blob:")))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if "Security Policy" in line.text else None)
        prepare(page)
        page.goto(address)
        yield SimpleNamespace(page=page, address=address, urls=urls, complaints=complaints)


@pytest.fixture(scope="module")
def demo(launch, fake_camera, folder):
    with opened(launch, fake_camera, folder) as demo:
        demo.page.locator(".card strong").wait_for()
        yield demo


def test_photos_and_the_camera_are_answered_and_nothing_leaves_this_computer(demo, portrait, tmp_path, keep):
    page = demo.page
    assert page.locator(".box").count() == 1 and "face detector: 9" in page.locator(".card").inner_text()
    assert page.get_by_role("tab").all_inner_texts() == ["Photo", "Webcam"]
    assert not page.locator("[data-part=heatMap]").is_visible(), "no network can explain itself here"
    (tmp_path / "notes.jpg").write_text("no image")
    Image.fromarray(np.hstack([portrait, portrait])).save(tmp_path / "two.png")
    page.locator("[data-part=photoFile]").set_input_files(tmp_path / "notes.jpg")
    page.get_by_text("notes.jpg is not an image that this browser can read").wait_for()
    page.locator("[data-part=photoFile]").set_input_files(tmp_path / "two.png")
    page.get_by_text("2 faces").wait_for()
    assert page.locator("[data-part=photo] .card").count() == 2
    keep(page)
    page.get_by_role("tab", name="Webcam").click()
    page.get_by_role("button", name="Start camera").click()
    page.get_by_text("frames/s").wait_for()
    page.locator("[data-part=webcam] .card strong").wait_for()
    keep(page, "_webcam")
    page.get_by_role("tab", name="Photo").click()
    assert [url for url in demo.urls if not url.startswith((demo.address, "data:"))] == []
    assert demo.complaints == [], "the page tried what it forbids itself"


COMPUTE = """async ([url, squares, network]) => {
  const [{ classify, pixelsOf }, { cropFaces }] = await Promise.all([import("/backend.js"), import("/crop.js")]);
  const image = await createImageBitmap(await (await fetch(url)).blob());
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").drawImage(image, 0, 0);
  const crops = cropFaces(pixelsOf(canvas), squares);
  return { crops: crops.map((crop) => [...crop]), probs: await classify(crops, network) };
}"""


def test_same_picture_and_boxes_give_the_crops_and_probabilities_of_python(demo, folder, portrait):
    weights = release.COMPACT
    Image.fromarray(portrait).save(folder / "portrait.png")
    answer = demo.page.evaluate(COMPUTE, ["portrait.png", SQUARES, weights.stem])
    crops = crop_faces(portrait, [SimpleNamespace(square=square, points=[]) for square in SQUARES])
    [probs] = classifiers.classify({"": load_classifier(weights)}, crops, "cpu").values()
    differences = np.abs(np.reshape(answer["crops"], crops.shape) - crops.astype(int))
    assert differences.max() <= 1 and differences.mean() < 0.001, "in gray levels; a few are rounded the other way"
    assert np.abs(np.array(answer["probs"]) - probs).max() < 1e-3


FIND = """async (file) => {
  const { backend } = await import("/backend.js");
  const photo = await (await fetch(file)).blob();
  return (await backend.predict(photo, { network: document.querySelector("select").value })).faces;
}"""


def test_boxes_are_those_of_the_python_detector(demo, folder, portrait):
    small = cv2.resize(portrait, None, fx=0.3, fy=0.3, interpolation=cv2.INTER_AREA)
    picture = np.full((480, 640, 3), 128, np.uint8)
    picture[20:200, 60:213], picture[250:430, 400:553] = small[:180, :153], small[:180, :153]
    Image.fromarray(picture).save(folder / "two_small.png")
    found = demo.page.evaluate(FIND, "two_small.png")
    finder = FaceFinder()
    expected = finder(picture)
    finder.close()
    boxes = np.array([face["box"] for face in found]) * [640, 480, 640, 480]
    assert len(expected) == 2 and np.abs(boxes - [face.box for face in expected]).max() < 1
    scores = [face["detectorConfidence"] for face in found]
    assert scores == pytest.approx([face.score for face in expected], abs=1e-3)


def test_small_faces_are_those_of_python(demo, folder, portrait):
    picture = np.full((300, 400, 3), 128, np.uint8)
    picture[20:200, 60:213] = cv2.resize(portrait, (153, 180), interpolation=cv2.INTER_AREA)
    picture[40:140, 280:365] = cv2.resize(portrait, (85, 100), interpolation=cv2.INTER_AREA)
    Image.fromarray(picture).save(folder / "near_and_far.png")
    found = demo.page.evaluate(FIND, "near_and_far.png")
    finder = FaceFinder()
    expected = finder(picture)
    finder.close()
    assert [face["isSmall"] for face in found] == [face.is_small for face in expected] == [False, True]


def test_box_is_enlarged_as_in_python(demo):
    box = (171.4, 146.9, 194.5, 190.1)
    squares = demo.page.evaluate(
        """async (box) => {
          const { BOX_IN_CROP, cropSquare } = await import("/faces.js");
          return Object.entries(BOX_IN_CROP).map(([range, numbers]) => [range, cropSquare(box, ...numbers)]);
        }""",
        box,
    )
    assert {name: pytest.approx(square) for name, square in squares} == {
        name: crop_square(box, *numbers) for name, numbers in BOX_IN_CROP.items()
    }


def test_browser_without_webgl_is_told_so(demo):
    message = demo.page.evaluate(
        """async () => {
          const { startFinder } = await import("/faces.js");
          const FaceDetector = { createFromOptions: () => Promise.reject(new Error("no context")) };
          return startFinder({ FaceDetector }, {}, { short: null }).catch((error) => error.message);
        }"""
    )
    assert message.startswith("Faces cannot be found (no context): switch on WebGL")


def test_browsers_without_webgl_in_an_offscreen_canvas_find_faces(launch, folder):
    no_webgl = "OffscreenCanvas.prototype.getContext = () => null"
    with opened(launch, (), folder, lambda page: page.add_init_script(no_webgl)) as demo:
        demo.page.locator(".card strong").wait_for()


def test_altered_files_from_the_cdn_are_refused(launch, folder, tmp_path):
    page = json.loads((folder / "page.json").read_text()) | {"runtime": web.runtime(offline=False)}
    (tmp_path / "page.json").write_text(json.dumps(page))
    web.copy_sources(tmp_path, offline=False)
    with opened(launch, (), tmp_path, lambda page: page.route(f"{web.CDN}**", answer_altered)) as demo:
        demo.page.get_by_text("could not be loaded").wait_for()
        assert {url for url in demo.urls if "npm" in url} == {web.CDN + file for file in web.RUNTIME}
        assert demo.page.get_by_role("tab").count() == 0


def answer_altered(route):
    route.fulfill(body="altered", headers={"Access-Control-Allow-Origin": "*"}, content_type="text/javascript")


def test_a_package_with_another_content_is_refused(tmp_path):
    [file, *_] = web.RUNTIME
    path = tmp_path / "package" / file.removeprefix(f"{web.ORT}/")
    path.parent.mkdir(parents=True)
    path.write_text("altered")
    archive = shutil.make_archive(str(tmp_path / "archive"), "gztar", tmp_path, "package")
    with pytest.raises(DataError, match=r"min\.mjs from npm has another checksum"):
        list(web.read_package(archive, web.ORT))


def test_a_place_that_cannot_be_written_ends_in_one_sentence(tmp_path, capsys):
    (tmp_path / "web").write_text("mine")
    assert web.main(["--output", str(tmp_path / "web")]) == 2
    assert capsys.readouterr().err == f"web: {tmp_path}/web is not a folder; name another one\n"


def test_missing_npm_ends_in_one_sentence(tmp_path, monkeypatch, capsys, needs_mediapipe):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert web.main(["--offline", "--output", str(tmp_path / "web")]) == 2
    assert capsys.readouterr().err == "web: --offline needs npm; install Node.js, or build the page without --offline\n"
