"""In a real browser: the webcam alone, the live demo as a page of Voila, and a panel in JupyterLab.

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

import cv2
import nbformat
import numpy as np
import psutil
import pytest
from matplotlib.cbook import get_sample_data
from PIL import Image
from test_setup import Machine

from fer_utils import widgets
from fer_utils.models import build_model
from fer_utils.models.weights import save_weights

ROOT = Path(__file__).resolve().parent.parent
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
NAMES = ("chromium", "chromium-browser", "google-chrome", MAC)
SERVER_SECONDS, NOTEBOOK_SECONDS = 120, 300  # about 3 and 30 on a quiet machine
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """A function that starts the browser with some options; each set of options is started once."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; ./run_tests.sh installs it")
    path = os.environ.get("FER_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium or Chrome was found (Debian, Ubuntu: sudo apt install chromium; or set FER_BROWSER)")
    started = {}
    with api.sync_playwright() as playwright:

        def start(*options):
            if options not in started:
                arguments = ["--no-sandbox", "--disable-gpu", *options]
                started[options] = playwright.chromium.launch(executable_path=path, args=arguments)
            return started[options]

        yield start
        for browser in started.values():
            browser.close()


@pytest.fixture(scope="session")
def portrait():
    return np.asarray(Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB"))


@pytest.fixture(scope="session")
def fake_camera(portrait, tmp_path_factory):
    """Options for a browser whose camera shows the portrait."""
    film = tmp_path_factory.mktemp("camera") / "portrait.y4m"
    frame = cv2.copyMakeBorder(portrait[:480], 0, 0, 64, 64, cv2.BORDER_CONSTANT)
    with film.open("wb") as stream:
        stream.write(b"YUV4MPEG2 W640 H480 F15:1 Ip A1:1 C420jpeg\n")
        for _ in range(5):
            stream.write(b"FRAME\n" + cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420).tobytes())
    return "--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={film}"


@pytest.fixture
def keep(request, tmp_path_factory):
    """A function that keeps a screenshot of a page."""
    folder = Path(os.environ.get("FER_SCREENSHOTS") or tmp_path_factory.getbasetemp() / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "_", request.node.name)
    return lambda page, what="": page.screenshot(path=folder / f"{name}{what}.png")


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


# --- The webcam alone: no kernel, and a model that answers when the test wants it ------------------------------------

HARNESS = """
<!doctype html><title>webcam</title><div id="root"></div><script type="module">
import widget from "/webcam.js";
const listeners = new Set();
window.sent = [];
window.wait = 50;  // milliseconds until a frame is answered; null: never
window.reply = (content, bytes) => listeners.forEach((f) => f({ ...content, text: `answer ${content.number}` }, bytes));
const model = {
  on: (_, f) => listeners.add(f), off: (_, f) => listeners.delete(f),
  send: (content, _, [bytes]) => {
    window.sent.push({ ...content, at: performance.now(), size: bytes.byteLength });
    if (window.wait !== null) setTimeout(() => window.reply(content, [new DataView(bytes)]), window.wait);
  },
};
window.listening = () => listeners.size;
window.cleanup = widget.render({ model, el: document.getElementById("root") });
</script>"""
REMEMBER_STREAM = """
const open = navigator.mediaDevices?.getUserMedia.bind(navigator.mediaDevices);
if (open) navigator.mediaDevices.getUserMedia = async (wanted) => (window.stream = await open(wanted));
"""
STATE = "window.stream.getTracks().map((track) => track.readyState)"


@pytest.fixture
def camera_page(launch):
    """A function that opens a page with nothing but the webcam."""
    with contextlib.ExitStack() as contexts:

        def open_page(*options, address="http://localhost/", allowed=True, script=REMEMBER_STREAM):
            context = launch(*options).new_context(permissions=["camera"] if allowed else [])
            contexts.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(60_000)
            source = (Path(widgets.__file__).parent / "assets" / "webcam.js").read_text(encoding="utf-8")
            page.route("**/*", lambda route: route.fulfill(body=HARNESS, content_type="text/html"))
            page.route("**/webcam.js", lambda route: route.fulfill(body=source, content_type="text/javascript"))
            page.add_init_script(script)
            page.goto(address)
            button(page, "Start camera").wait_for()
            return page

        yield open_page


def button(page, name):
    return page.get_by_role("button", name=name)


def press_start(page):
    button(page, "Start camera").click()


def wait_for_frames(page, n):
    page.wait_for_function(f"window.sent.length >= {n}")


def test_next_frame_is_sent_only_after_the_last_answer(camera_page, fake_camera, keep):
    page = camera_page(*fake_camera)
    page.evaluate("window.wait = null")
    press_start(page)
    wait_for_frames(page, 1)
    page.wait_for_timeout(1500)
    assert page.evaluate("window.sent.length") == 1, "frames pile up while the kernel is busy"
    page.evaluate("window.wait = 300; window.reply(window.sent[0], [])")
    wait_for_frames(page, 5)
    sent = page.evaluate("window.sent")
    gaps = np.diff([frame["at"] for frame in sent[1:]])
    assert [frame["number"] for frame in sent] == list(range(1, len(sent) + 1))
    assert gaps.min() >= 299 and all(frame["size"] > 2000 for frame in sent)
    page.wait_for_function("document.querySelector('img').naturalWidth === 640")
    assert page.get_by_role("status").inner_text().startswith("answer ")
    keep(page)


def test_answers_to_others_and_late_ones_are_ignored(camera_page, fake_camera):
    page = camera_page(*fake_camera)
    page.evaluate("window.wait = null")
    press_start(page)
    wait_for_frames(page, 1)
    page.evaluate(
        "window.reply({ view: 'another', number: 1 }, []); window.reply({ ...window.sent[0], number: 0 }, [])"
    )
    page.wait_for_timeout(300)
    assert page.evaluate("window.sent.length") == 1 and "answer" not in page.get_by_role("status").inner_text()


ENDINGS = {
    "Stop pressed": "[...document.querySelectorAll('button')].at(-1).click()",
    "output cleared": "window.cleanup()",
    "page left": "window.dispatchEvent(new PageTransitionEvent('pagehide'))",
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_camera_is_released(camera_page, fake_camera, ending):
    page = camera_page(*fake_camera)
    press_start(page)
    wait_for_frames(page, 2)
    assert page.evaluate(STATE) == ["live"]
    page.evaluate(ending)
    assert page.evaluate(STATE) == ["ended"] and not page.locator("img").is_visible()
    sent = page.evaluate("window.sent.length")
    page.wait_for_timeout(300)
    assert page.evaluate("window.sent.length") <= sent
    assert page.evaluate("window.listening()") == (1 if "click" in ending else 0)


def test_camera_is_released_when_it_opens_after_the_page_was_left(camera_page, fake_camera):
    page = camera_page(*fake_camera)
    press_start(page)
    page.evaluate("window.cleanup()")
    page.wait_for_function(f"window.stream && {STATE}[0] === 'ended'")
    assert page.evaluate("window.sent.length") == 0


def test_camera_is_released_when_the_kernel_is_silent(camera_page, fake_camera):
    patience = "const wait = window.setTimeout; window.setTimeout = (f, ms) => wait(f, ms === 20000 ? 400 : ms);"
    page = camera_page(*fake_camera, script=REMEMBER_STREAM + patience)
    page.evaluate("window.wait = null")
    press_start(page)
    page.get_by_text("The kernel has not answered").wait_for()
    assert page.evaluate(STATE) == ["ended"]


def refuse(name):
    return f"navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', '{name}'));"


def test_four_reasons_for_no_camera_have_four_messages(camera_page, fake_camera, keep):
    pages = {
        "denied": camera_page(*fake_camera, allowed=False),
        "busy": camera_page(*fake_camera, script=refuse("NotReadableError")),
        "absent": camera_page(*fake_camera, script=refuse("NotFoundError")),
        "insecure": camera_page(*fake_camera, address="http://demo.example/", allowed=False),
    }
    messages = {}
    for reason, page in pages.items():
        press_start(page)
        page.get_by_text("Uploading images still works").wait_for()
        messages[reason] = page.get_by_role("status").inner_text()
        keep(page, f"_{reason}")
        assert button(page, "Start camera").is_enabled(), "it can be tried again"
    expected = {"denied": "not allowed", "busy": "another program", "absent": "No camera", "insecure": "https"}
    assert {reason: text in messages[reason] for reason, text in expected.items()} == dict.fromkeys(expected, True)
    assert len(set(messages.values())) == 4


# --- The notebook, in Voila and in JupyterLab -------------------------------------------------------------------------


def write_notebook(path, inputs, last=None):
    """Notebook 09 with the sample data; with `last` only up to the cell that calls the function of this name."""
    notebook = json.loads((ROOT / "notebooks" / "09_live_demo.ipynb").read_text(encoding="utf-8"))
    values = {"data": "sample", "device": "cpu", "inputs": str(inputs), "out": str(path.parent / "out")}
    values |= {"crop_images": 14, "repeats": 2}
    kept = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", []):
            cell["source"] = source + "\n" + "\n".join(f"{name} = {value!r}" for name, value in values.items())
        kept.append(cell)
        if last and cell["cell_type"] == "code" and re.search(rf"^{last}\(", source, re.MULTILINE):
            break
    path.write_text(json.dumps(notebook | {"cells": kept}), encoding="utf-8")
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
def voila(tmp_path):
    """A function that serves a notebook as Voila does from the project's folder, but for the options given."""
    pytest.importorskip("voila")
    with contextlib.ExitStack() as servers:

        def start(notebook, *options):
            shutil.copy(ROOT / "voila.json", notebook.parent)
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


def panel_of(page, text):
    """The panel that contains a text."""
    return page.locator(".widget-vbox").filter(has=page.get_by_text(text)).last


def upload(page, *files):
    with page.expect_file_chooser() as chooser:
        button(page, "Upload images").click()
    chooser.value.set_files(files)


def wait_for_change(figure, before):
    """Wait until an image on the page is another one than before."""
    deadline = time.monotonic() + NOTEBOOK_SECONDS
    while figure.get_attribute("src") == before:
        assert time.monotonic() < deadline, "the figure has not changed"
        time.sleep(0.2)


def test_voila_uploads_webcam_and_video(voila, visit, networks, portrait, tmp_path, keep):
    page = visit(voila(write_notebook(tmp_path / "demo.ipynb", networks)).address)
    button(page, "Start camera").wait_for()
    keep(page, "_begin")

    family = tmp_path / "family.png"
    Image.fromarray(np.hstack([portrait, portrait[:, ::-1]])).save(family)
    (tmp_path / "notes.jpg").write_text("no image")
    figure = panel_of(page, "Upload images").locator("img").last
    before = figure.get_attribute("src")
    upload(page, family, tmp_path / "notes.jpg")
    page.get_by_text("notes.jpg is not an image that can be read here").wait_for()
    wait_for_change(figure, before)
    figure.scroll_into_view_if_needed()
    keep(page, "_upload")

    button(page, "Start camera").click()
    page.get_by_text(re.compile(r"^1 face, \d+ ms$")).wait_for()
    page.locator(".fer-webcam img").scroll_into_view_if_needed()
    keep(page, "_webcam")
    button(page, "Stop camera").click()
    page.get_by_text("The camera is off.").wait_for()

    button(page, "Annotate the video").click()
    page.get_by_text(re.compile(r"^45 frames, written to .*clip_smooth.webm and clip_smooth.csv$")).wait_for()
    page.get_by_text("45 frames, written to").scroll_into_view_if_needed()
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


def test_voila_camera_denied_and_upload_still_works(voila, visit, networks, portrait, tmp_path, keep):
    notebook = write_notebook(tmp_path / "demo.ipynb", networks, last="explore_webcam")
    page = visit(voila(notebook).address, allowed=False)
    button(page, "Start camera").click()
    page.get_by_text("The browser was not allowed to use the camera").wait_for()
    keep(page)
    Image.fromarray(portrait).save(tmp_path / "one.png")
    figure = panel_of(page, "Upload images").locator("img").last
    before = figure.get_attribute("src")
    upload(page, tmp_path / "one.png")
    wait_for_change(figure, before)


def test_voila_without_networks_gives_an_instruction(voila, visit, tmp_path, keep):
    page = visit(voila(without_networks(write_notebook(tmp_path / "demo.ipynb", tmp_path))).address)
    page.get_by_text("There is no trained network yet").first.wait_for()
    keep(page)
    assert button(page, "Start camera").count() == 0, "nothing to play with before there is a network"


def without_networks(notebook):
    """The same notebook, blind to the networks of this project."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    cell = next(cell for cell in content["cells"] if "load_classifiers(" in "".join(cell["source"]))
    cell["source"] = "classifiers.FILES = {}\n" + "".join(cell["source"])
    notebook.write_text(json.dumps(content), encoding="utf-8")
    return notebook


def test_voila_stops_kernels_that_nobody_looks_at():
    settings = json.loads((ROOT / "voila.json").read_text())["MappingKernelManager"]
    assert 0 < settings["cull_idle_timeout"] <= 600 and 0 < settings["cull_interval"] <= settings["cull_idle_timeout"]
    assert not settings.get("cull_connected"), "a page that is being looked at keeps its kernel"


def test_jupyterlab_runs_the_notebook_and_its_panels_answer(visit, networks, tmp_path, keep):
    write_notebook(tmp_path / "demo.ipynb", networks, last="explore_webcam")
    options = ("--no-browser", "--allow-root", "--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}")
    with serve("jupyterlab", *options, cwd=tmp_path) as server:
        page = visit(f"{server.address}/lab/tree/demo.ipynb?reset")
        page.locator(".jp-Notebook").wait_for()
        # Without a kernel "Run All Cells" does nothing; on a busy machine it comes some seconds after the cells.
        page.get_by_text(re.compile(r"^(?!No Kernel).+ \| Idle$")).wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        panel = panel_of(page, "Grad-CAM overlay")
        panel.wait_for()
        figure = panel.locator("img").last
        figure.wait_for()
        figure.scroll_into_view_if_needed()
        keep(page, "_before")
        before = figure.get_attribute("src")
        panel.locator("input[type=checkbox]").focus()
        page.keyboard.press("Space")  # controls can be worked by keyboard
        wait_for_change(figure, before)
        keep(page, "_after")
        button(page, "Start camera").click()
        page.get_by_text(re.compile(r"^1 face, \d+ ms$")).wait_for()
        page.locator(".fer-webcam img").scroll_into_view_if_needed()
        keep(page, "_webcam")
