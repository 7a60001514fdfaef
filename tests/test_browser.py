"""In a real browser: the page of the demo alone, the demo in Voila, and a panel in JupyterLab.

Playwright drives any Chromium or Chrome that is installed; $FER_BROWSER names another one. Without a browser these
tests are skipped and say so. Screenshots are kept below pytest's folder for the test run, or in $FER_SCREENSHOTS.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import cv2
import nbformat
import numpy as np
import psutil
import pytest
from matplotlib.cbook import get_sample_data
from PIL import Image
from test_setup import Machine

from fer_utils import widgets
from fer_utils.demo.widget import FOLDER
from fer_utils.models import build_model
from fer_utils.models.weights import save_weights
from fer_utils.vision.video import open_video

ROOT = Path(__file__).resolve().parent.parent
SERVER_SECONDS, NOTEBOOK_SECONDS = 120, 300  # about 3 and 30 on a quiet machine
pytestmark = pytest.mark.timeout(900)

# --- The browser itself -----------------------------------------------------------------------------------------------

APT = """\
#!/usr/bin/env bash
echo "apt-get $*" >>"$CALLS"
exit "${APT:-0}"
"""


@pytest.fixture
def machine(tmp_path):
    """A bare machine with apt-get, on which we are root."""
    machine = Machine(tmp_path)
    machine.run("run_all.sh")
    machine.command("apt-get", APT)
    machine.command("id", "#!/usr/bin/env bash\necho ${USER_ID:-0}")
    machine.calls()
    return machine


def test_a_missing_browser_is_installed(machine):
    code, _, error = machine.run("run_tests.sh")
    update, install, *others = machine.calls()
    assert code == 0 and "installing Chromium" in error
    assert update.endswith("update") and install.endswith("install chromium")
    assert others[-1].startswith("python -m pytest")


def test_tests_run_where_the_browser_cannot_be_installed(machine):
    code, _, error = machine.run("run_tests.sh", APT="100")
    assert code == 0 and "Chromium could not be installed, see above" in error
    assert machine.calls()[-1].startswith("python -m pytest")


@pytest.mark.parametrize(
    "arguments, variables, browser",
    [
        ((), {"USER_ID": "1000"}, None),
        ((), {"FER_BROWSER": "/opt/mine"}, None),
        ((), {}, "chromium"),
        (("-k", "data"), {}, None),
    ],
    ids=["not root", "browser is named", "browser is there", "only some tests"],
)
def test_nothing_is_installed_without_need_or_right(machine, arguments, variables, browser):
    if browser:
        machine.command(browser, "#!/usr/bin/env bash")
    assert machine.run("run_tests.sh", *arguments, **variables)[0] == 0
    assert not [call for call in machine.calls() if call.startswith("apt-get")]


# --- The page alone: no kernel, and a model that answers when the test wants it ---------------------------------------

HARNESS = """
<!doctype html><title>demo</title><link rel="stylesheet" href="/app.css"><div id="root"></div><script type="module">
import widget from "/widget.js";
const listeners = new Set(), nothing = new DataView(new ArrayBuffer(0));
window.sent = [];  // the frames of the camera
window.wait = 20;  // milliseconds until a frame is answered; null: never
window.faces = [{ box: [0.1, 0.2, 0.3, 0.4], detectorConfidence: 0.9, probs: [0, 0, 0, 0.9, 0, 0, 0.1] }];
const picture = await (await fetch("/portrait.jpg")).arrayBuffer();
const network = { id: "baseline_cnn", title: "baseline_cnn", about: "Right for 62 % of 9 images", heatMap: true };
window.reply = (content, buffers = []) => listeners.forEach((f) => f(content, buffers));
const answers = {
  open: ({ id }) => {
    if (window.noNetwork) return window.reply({ id, networks: [], notice: "Run notebook 04", examples: [] });
    window.reply({ id, networks: [network], notice: "", examples: ["one", "two"] }, [picture, picture]);
  },
  predict: ({ id, name }) => {
    if (name === "notes.jpg") return window.reply({ id, error: "notes.jpg is not an image" });
    const crops = new DataView(new ArrayBuffer(2304 * window.faces.length));
    window.reply({ id, ms: 5, faces: window.faces }, [crops, nothing, new DataView(picture)]);
  },
};
const model = {
  on: (_, f) => listeners.add(f), off: (_, f) => listeners.delete(f),
  send: (content, _, buffers) => {
    if (content.live) window.sent.push({ ...content, at: performance.now(), size: buffers[0].byteLength });
    const wait = content.live ? window.wait : 0;
    if (wait !== null) setTimeout(() => answers[content.kind](content), wait);
  },
};
window.listening = () => listeners.size;
window.cleanup = widget.render({ model, el: document.getElementById("root") });
</script>"""
REMEMBER_STREAM = """
const open = navigator.mediaDevices?.getUserMedia.bind(navigator.mediaDevices);
window.streams = [];
if (open) navigator.mediaDevices.getUserMedia = async (wanted) => {
  window.stream = await open(wanted);
  window.streams.push(window.stream);
  return window.stream;
};
"""
STATE = "window.stream.getTracks().map((track) => track.readyState)"
TWO_CAMERAS = ("--use-fake-device-for-media-stream=device-count=2",)
LIVE_CAMERAS = """
window.streams.map((stream) => stream.getVideoTracks()[0]).filter((track) => track.readyState === "live")
  .map((track) => track.getSettings().deviceId)"""
PORTRAIT = Path(get_sample_data("grace_hopper.jpg", asfileobj=False))
TYPES = {"js": "text/javascript", "css": "text/css", "jpg": "image/jpeg"}


def serve_file(route):
    """Answer with a file of the demo, the portrait, or the page that holds the widget."""
    name = Path(urlparse(route.request.url).path).name
    file = PORTRAIT if name == "portrait.jpg" else FOLDER / name
    if name and file.is_file():
        route.fulfill(body=file.read_bytes(), content_type=TYPES[name.split(".")[-1]])
    else:
        route.fulfill(body=HARNESS, content_type="text/html")


@pytest.fixture
def open_demo(launch, fake_camera):
    """A function that opens a page with nothing but the demo."""
    with contextlib.ExitStack() as contexts:

        def open_page(
            address="http://localhost/", allowed=True, script=REMEMBER_STREAM, tab="Webcam", cameras=fake_camera
        ):
            context = launch(*cameras).new_context(permissions=["camera"] if allowed else [])
            contexts.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(60_000)
            page.route("**/*", serve_file)
            page.add_init_script(script)
            page.goto(address)
            if tab:
                page.get_by_role("tab", name=tab).click()
            return page

        yield open_page


def button(page, name):
    return page.get_by_role("button", name=name)


def press_start(page):
    button(page, "Start camera").click()


def wait_for_frames(page, n):
    page.wait_for_function(f"window.sent.length >= {n}")


def camera_message(page):
    return page.locator("[data-part=cameraStatus]")


def test_photos_become_cards_and_a_bad_one_loses_no_other(open_demo, tmp_path, keep):
    page = open_demo(tab="Photo")
    page.locator(".card strong", has_text="happy").wait_for()
    assert page.locator(".box").inner_text() == "happy 90 %" and page.locator(".card").count() == 1
    assert page.locator(".card li").all_inner_texts()[3].split("\n") == ["happy", "90 %"]
    page.evaluate("window.faces = [window.faces[0], { ...window.faces[0], detectorConfidence: null }]")
    (tmp_path / "notes.jpg").write_text("no image")
    (tmp_path / "family.png").write_bytes(PORTRAIT.read_bytes())
    page.locator("[data-part=photoFile]").set_input_files([tmp_path / "notes.jpg", tmp_path / "family.png"])
    page.get_by_text("notes.jpg is not an image").wait_for()
    assert page.locator(".card").count() == page.locator(".box").count() == 0, "an old answer is not shown"
    button(page, "family.png").click()
    page.get_by_text("2 faces").wait_for()
    assert page.locator(".box").all_inner_texts() == ["1\nhappy", "2\nhappy"]
    assert "no face detector" in page.locator(".card").last.inner_text()
    keep(page)


def test_faces_with_few_pixels_are_named_beside_the_number_of_faces(open_demo, keep):
    page = open_demo(tab="Photo")
    page.get_by_text("1 face").wait_for()
    assert page.locator(".too-small").all_inner_texts() == [""] * 3
    page.evaluate("window.faces = [true, false, true].map((isSmall) => ({ ...window.faces[0], isSmall }))")
    button(page, "two").click()
    page.get_by_text("2 faces may be too small; below 48x48 pixels, predictions are unreliable").wait_for()
    assert [("few pixels" in text) for text in page.locator(".card").all_inner_texts()] == [True, False, True]
    keep(page)


def test_without_a_network_there_is_an_instruction_and_nothing_to_play_with(open_demo):
    page = open_demo(tab=None, script="window.noNetwork = true;")
    page.get_by_text("Run notebook 04").wait_for()
    assert page.get_by_role("tab").count() == page.get_by_role("button").count() == 0


def test_everything_can_be_reached_by_keyboard(open_demo):
    page = open_demo(tab="Photo")
    page.locator(".card").wait_for()
    page.get_by_role("combobox", name="Network").focus()
    reached = []
    for _ in range(5):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent || document.activeElement.dataset.part"))
    assert reached == ["heatMap", "Photo", "Choose photos", "one", "two"]
    page.keyboard.press("Enter")
    assert button(page, "two").get_attribute("aria-current") == "true"
    page.get_by_role("tab", name="Photo").focus()
    page.keyboard.press("ArrowLeft")
    assert page.get_by_role("tab", name="Video").get_attribute("aria-selected") == "true"
    assert page.get_by_role("tabpanel").count() == 1


def test_next_frame_is_sent_only_after_the_last_answer(open_demo, keep):
    page = open_demo()
    page.evaluate("window.wait = null")
    press_start(page)
    wait_for_frames(page, 1)
    page.evaluate("window.reply({ ...window.sent[0], id: 'of another view', faces: [] })")
    page.wait_for_timeout(500)
    assert page.evaluate("window.sent.length") == 1, "frames pile up while the kernel is busy"
    page.evaluate(
        "window.wait = 200; window.reply({ ...window.sent[0], faces: [], ms: 1 }, [new DataView(new ArrayBuffer(0))])"
    )
    wait_for_frames(page, 5)
    sent = page.evaluate("window.sent")
    assert np.diff([frame["at"] for frame in sent[1:]]).min() >= 199
    assert all(frame["size"] > 2000 for frame in sent)
    assert re.match(r"\d+ frames/s · 5 ms each", page.locator(".speed").inner_text())
    left = page.locator("[data-part=webcam] .box").evaluate("box => parseFloat(box.style.left)")
    assert left == pytest.approx(60), "boxes are mirrored as the camera is"
    keep(page)


ENDINGS = {
    "Stop pressed": "document.querySelector('[data-part=cameraButton]').click()",
    "other tab": "document.querySelector('[role=tab]').click()",
    "output cleared": "window.cleanup()",
    "page left": "window.dispatchEvent(new PageTransitionEvent('pagehide'))",
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_camera_is_released(open_demo, ending):
    page = open_demo()
    press_start(page)
    wait_for_frames(page, 2)
    assert page.evaluate(STATE) == ["live"]
    page.evaluate(ending)
    assert page.evaluate(STATE) == ["ended"] and page.locator("[data-part=webcam] .card").count() == 0
    sent = page.evaluate("window.sent.length")
    page.wait_for_timeout(200)
    assert page.evaluate("window.sent.length") <= sent + 1, "more than the frame that was on its way"
    assert page.evaluate("window.listening()") == (0 if "cleanup" in ending else 1)


def test_camera_is_released_when_it_opens_after_the_page_was_left(open_demo):
    page = open_demo()
    press_start(page)
    page.evaluate("window.cleanup()")
    page.wait_for_function(f"window.stream && {STATE}[0] === 'ended'")
    assert page.evaluate("window.sent.length") == 0


def test_camera_is_released_when_the_kernel_is_silent(open_demo):
    patience = "const wait = window.setTimeout; window.setTimeout = (f, ms) => wait(f, ms === 20000 ? 400 : ms);"
    page = open_demo(script=REMEMBER_STREAM + patience)
    page.evaluate("window.wait = null")
    press_start(page)
    page.get_by_text("The kernel has not answered").wait_for()
    assert page.evaluate(STATE) == ["ended"]


ASK_FIRST = """
const openAtOnce = navigator.mediaDevices.getUserMedia;
navigator.mediaDevices.getUserMedia = async (wanted) => {
  await new Promise((resolve) => { window.allow = resolve; });
  return openAtOnce(wanted);
};"""


def test_camera_is_released_when_it_opens_after_another_tab_was_chosen(open_demo):
    page = open_demo(script=REMEMBER_STREAM + ASK_FIRST)
    press_start(page)
    page.wait_for_function("window.allow !== undefined")
    page.get_by_role("tab", name="Photo").click()
    page.evaluate("window.allow()")
    page.wait_for_function(f"window.stream && {STATE}[0] === 'ended'")
    assert page.evaluate("window.sent.length") == 0


def camera_menu(page):
    return page.get_by_role("combobox", name="Camera")


def wait_for_camera(page, device):
    """Wait until exactly this camera is on, and its frames are sent."""
    sent = page.evaluate("window.sent.length")
    page.wait_for_function(f"window.sent.length > {sent} && ({LIVE_CAMERAS}).join() === {device!r}")
    assert camera_menu(page).input_value() == device


def test_of_two_cameras_one_can_be_chosen_with_the_keyboard_and_stays_chosen(open_demo, keep):
    page = open_demo(cameras=TWO_CAMERAS)
    assert not camera_menu(page).is_visible(), "a browser tells of its cameras only after it was allowed to use one"
    press_start(page)
    camera_menu(page).wait_for()
    first, second = camera_menu(page).locator("option").evaluate_all("options => options.map(({ value }) => value)")
    assert camera_menu(page).locator("option").all_inner_texts() == ["fake_device_0", "fake_device_1"]
    wait_for_camera(page, first)
    camera_menu(page).press("ArrowDown")
    wait_for_camera(page, second)
    keep(page)
    button(page, "Stop camera").click()
    press_start(page)
    wait_for_camera(page, second)
    for key in ("ArrowUp", "ArrowDown", "ArrowUp"):  # faster than a camera opens
        camera_menu(page).press(key)
    wait_for_camera(page, first)


def test_one_camera_needs_no_menu(open_demo):
    page = open_demo()
    press_start(page)
    wait_for_frames(page, 2)
    assert not camera_menu(page).is_visible()


def test_camera_that_is_plugged_in_can_be_chosen_and_one_that_is_gone_is_forgotten(open_demo):
    page = open_demo(cameras=TWO_CAMERAS)
    page.evaluate("""() => {
        const list = navigator.mediaDevices.enumerateDevices.bind(navigator.mediaDevices);
        window.plugged = 1;
        navigator.mediaDevices.enumerateDevices = async () =>
          (await list()).filter(({ kind }) => kind === "videoinput").slice(0, window.plugged);
        window.plug = (n) => {
          window.plugged = n;
          navigator.mediaDevices.dispatchEvent(new Event("devicechange"));
        };
    }""")
    press_start(page)
    wait_for_frames(page, 2)
    assert not camera_menu(page).is_visible()
    page.evaluate("window.plug(2)")
    camera_menu(page).select_option("fake_device_1")
    second = camera_menu(page).input_value()
    wait_for_camera(page, second)
    page.evaluate("window.plug(1); window.stream.getTracks()[0].dispatchEvent(new Event('ended'))")
    page.get_by_text("The camera was disconnected").wait_for()
    press_start(page)
    page.wait_for_function(f"({LIVE_CAMERAS}).length === 1")
    assert page.evaluate(LIVE_CAMERAS) != [second]


REAR_CAMERA = """
const settings = MediaStreamTrack.prototype.getSettings;
MediaStreamTrack.prototype.getSettings = function () {
  return { ...settings.call(this), facingMode: this.label === "fake_device_1" ? "environment" : "user" };
};"""


def test_only_a_camera_that_looks_away_from_the_visitor_is_not_mirrored(open_demo):
    page = open_demo(cameras=TWO_CAMERAS, script=REMEMBER_STREAM + REAR_CAMERA)
    box, video = page.locator("[data-part=webcam] .box"), page.locator("[data-part=webcam] video")
    seen = {}
    for name in ("fake_device_0", "fake_device_1"):
        if seen:
            camera_menu(page).select_option(name)
        else:
            press_start(page)
        wait_for_frames(page, page.evaluate("window.sent.length") + 2)
        box.wait_for()
        left = box.evaluate("box => Math.round(parseFloat(box.style.left))")
        transform = video.evaluate("video => getComputedStyle(video).transform")
        seen[name] = left, transform, video.get_attribute("aria-label")
    assert seen == {
        "fake_device_0": (60, "matrix(-1, 0, 0, 1, 0, 0)", "Your camera, mirrored"),
        "fake_device_1": (10, "none", "Your camera"),
    }


def refuse(name):
    return f"navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', '{name}'));"


def test_four_reasons_for_no_camera_have_four_messages(open_demo, keep):
    pages = {
        "denied": open_demo(allowed=False),
        "busy": open_demo(script=refuse("NotReadableError")),
        "absent": open_demo(script=refuse("NotFoundError")),
        "insecure": open_demo(address="http://demo.example/", allowed=False),
    }
    messages = {}
    for reason, page in pages.items():
        press_start(page)
        page.get_by_text("Photos still work").wait_for()
        messages[reason] = camera_message(page).inner_text()
        assert button(page, "Start camera").is_enabled(), "it can be tried again"
    keep(page)
    expected = {"denied": "not allowed", "busy": "another program", "absent": "No camera", "insecure": "https"}
    assert {reason: text in messages[reason] for reason, text in expected.items()} == dict.fromkeys(expected, True)
    assert len(set(messages.values())) == 4


# --- The notebook, in Voila and in JupyterLab -------------------------------------------------------------------------


def write_notebook(path, inputs, extra=""):
    """The notebook of the demo, with the networks in a folder; extra: code that runs before."""
    notebook = nbformat.read(ROOT / "notebooks" / "demo.ipynb", as_version=4)
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "Demo()" in code.source
    code.source = extra + code.source.replace("Demo()", f"Demo({str(inputs)!r}, 'cpu')")
    nbformat.write(notebook, path)
    return path


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A folder with a network as notebook 04 would leave it; what it says does not matter here."""
    folder = tmp_path_factory.mktemp("networks")
    save_weights(build_model("baseline_cnn"), folder / "checkpoints" / "baseline_cnn_seed0.pt")
    return folder


@dataclass
class Server:
    """A server of web pages on this machine."""

    address: str
    process: psutil.Popen

    def works(self) -> bool:
        """Whether it has a kernel, or a process of a kernel."""
        return bool(self.process.children(recursive=True))


@contextlib.contextmanager
def serve(*command, cwd):
    """A server on a free port, until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != widgets.HEADLESS}
    with (cwd / "server.log").open("w") as log:
        process = psutil.Popen(
            [sys.executable, "-m", *command, f"--port={port}"], cwd=cwd, env=environment, stdout=log, stderr=log
        )
        try:
            wait_for_port(process, port, cwd / "server.log")
            yield Server(f"http://localhost:{port}", process)
        finally:
            process.terminate()
            process.wait(60)


def wait_for_port(process, port, log):
    deadline = time.monotonic() + SERVER_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        time.sleep(0.2)
    pytest.fail(f"the server did not start:\n{log.read_text()}")


@pytest.fixture
def voila(monkeypatch):
    """A function that serves a notebook as run_demo.sh does, but for the options given."""
    pytest.importorskip("voila")
    with contextlib.ExitStack() as servers:

        def start(notebook, *options):
            shutil.copy(ROOT / "voila.json", notebook.parent)
            paths = [str(FOLDER / "page"), os.environ.get("JUPYTER_PATH")]
            monkeypatch.setenv("JUPYTER_PATH", os.pathsep.join(filter(None, paths)))
            return servers.enter_context(serve("voila", notebook.name, "--no-browser", *options, cwd=notebook.parent))

        yield start


@pytest.fixture
def visit(launch, fake_camera):
    """A function that opens an address in a browser whose camera shows the portrait."""
    with contextlib.ExitStack() as contexts:

        def go(address, allowed=True):
            browser = launch(*fake_camera)
            context = browser.new_context(
                viewport={"width": 1366, "height": 768}, permissions=["camera"] if allowed else []
            )
            contexts.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(1000 * NOTEBOOK_SECONDS)
            page.goto(address, wait_until="domcontentloaded")
            return page

        yield go


def test_voila_photo_webcam_and_video(voila, visit, networks, portrait, tmp_path, keep):
    page = visit(voila(write_notebook(tmp_path / "demo.ipynb", networks), "--template=demo").address)
    elsewhere = []
    page.on("request", lambda request: elsewhere.append(request.url))
    page.reload(wait_until="domcontentloaded")
    page.get_by_text("1 face,").wait_for()
    keep(page, "_begin")
    assert not [url for url in elsewhere if not re.match(r"(https?|wss?)://localhost:|blob:|data:", url)]

    family = tmp_path / "family.png"
    Image.fromarray(np.hstack([portrait, portrait[:, ::-1]])).save(family)
    page.locator("[data-part=photoFile]").set_input_files(family)
    page.get_by_text("2 faces,").wait_for()
    keep(page, "_photo")

    page.get_by_role("tab", name="Webcam").click()
    press_start(page)
    page.get_by_text(re.compile(r"^\d+ frames/s")).wait_for()
    keep(page, "_webcam")
    button(page, "Stop camera").click()
    page.get_by_text("The camera is off.").wait_for()

    film = tmp_path / "film.webm"
    writer = open_video(film, 15, (640, 480))
    for _ in range(8):
        writer.write(cv2.cvtColor(cv2.copyMakeBorder(portrait[:480], 0, 0, 64, 64, cv2.BORDER_CONSTANT), 4))
    writer.release()
    page.get_by_role("tab", name="Video").click()
    page.locator("[data-part=videoFile]").set_input_files(film)
    page.get_by_text("film.webm: 8 frames").wait_for()
    page.locator("[data-part=video] .card").wait_for()
    with page.expect_download() as download:
        page.get_by_text("Download the CSV").click()
    assert download.value.suggested_filename == "film_faces.csv"
    assert Path(download.value.path()).read_text().count("\n") == 9
    keep(page, "_video")


def test_voila_stops_a_kernel_soon_after_its_page_is_closed(voila, visit, tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import ipywidgets; ipywidgets.Button()")])
    nbformat.write(notebook, tmp_path / "small.ipynb")
    # Voila counts a kernel as idle while its page is still being made: on a busy machine much less is too soon.
    soon = ("--MappingKernelManager.cull_idle_timeout=15", "--MappingKernelManager.cull_interval=1")
    server = voila(tmp_path / "small.ipynb", *soon)
    page = visit(server.address)
    page.locator(".jupyter-button").wait_for()
    time.sleep(25)
    assert server.works(), "a page that is being looked at has lost its kernel"
    page.close(run_before_unload=True)
    deadline = time.monotonic() + 120
    while server.works() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not server.works(), "the kernel outlives its page"


def test_voila_stops_kernels_that_nobody_looks_at():
    settings = json.loads((ROOT / "voila.json").read_text())["MappingKernelManager"]
    assert 0 < settings["cull_idle_timeout"] <= 600 and 0 < settings["cull_interval"] <= settings["cull_idle_timeout"]
    assert not settings.get("cull_connected"), "a page that is being looked at keeps its kernel"


PANEL = """\
import ipywidgets
import matplotlib.pyplot as plt
from fer_utils.widgets import explore

def draw(on):
    return plt.figure(figsize=(1 + on, 1))

explore(draw, on=ipywidgets.Checkbox(description="wide"))
"""


def test_jupyterlab_shows_the_demo_and_its_panels_answer(visit, networks, tmp_path, keep):
    write_notebook(tmp_path / "demo.ipynb", networks, extra=PANEL)
    options = ("--no-browser", "--allow-root", "--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}")
    with serve("jupyterlab", *options, cwd=tmp_path) as server:
        page = visit(f"{server.address}/lab/tree/demo.ipynb?reset")
        page.locator(".jp-Notebook").wait_for()
        # Without a kernel "Run All Cells" does nothing; on a busy machine it comes some seconds after the cells.
        page.get_by_text(re.compile(r"^(?!No Kernel).+ \| Idle$")).wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        panel = page.locator(".widget-vbox").filter(has=page.get_by_text("wide")).last
        panel.wait_for()
        figure = panel.locator("img").last
        figure.wait_for()
        before = figure.get_attribute("src")
        panel.locator("input[type=checkbox]").focus()
        page.keyboard.press("Space")  # controls can be worked by keyboard
        wait_for_change(figure, before)
        page.get_by_text("1 face,").wait_for()
        page.get_by_role("tab", name="Webcam").click()
        press_start(page)
        page.get_by_text(re.compile(r"^\d+ frames/s")).wait_for()
        page.locator(".fer-demo .stage").nth(1).scroll_into_view_if_needed()
        keep(page)


def wait_for_change(figure, before):
    """Wait until an image on the page is another one than before."""
    deadline = time.monotonic() + NOTEBOOK_SECONDS
    while figure.get_attribute("src") == before:
        assert time.monotonic() < deadline, "the figure has not changed"
        time.sleep(0.2)
