"""Make docs/demo.webp, the film of the demo in README.md: a script works the page of ./run_demo.sh in Chromium.

    .venv/bin/python docs/make_demo_film.py

All pictures are those of the embedded sample. The demo shows the small network in models/ as long as no notebook has
trained another one: call this in a fresh clone. Needs Chromium or Chrome; $FER_BROWSER names another one.
"""

import io
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

from fer_utils.demo.widget import load_examples

ROOT = Path(__file__).resolve().parent.parent
FILM = ROOT / "docs" / "demo.webp"
PAGE, SIZE = (1000, 870), (800, 696)  # of the page and of the film, in pixels; so high, nothing has to be scrolled
STARTING = 300_000  # milliseconds to wait for the server, and for the networks
LOOK, POINT, LIVE = 1200, 400, 200  # milliseconds for which a frame is shown: a result, the pointer, the camera
POSES = {"neutral": 60, "happy": 100, "surprise": 75}  # what the camera sees: an example, and how far to the right
POSE, PAUSE = 10, 2  # seconds for which the camera sees each, and between two pictures: a busy computer is slow
POINTER = """() => {
  const pointer = document.createElement("div");
  pointer.innerHTML = `<svg width="26" height="34" viewBox="0 0 13 17">
    <path d="M1 1v13l3-3 2 5 2.5-1-2-5H11z" fill="black" stroke="white"/></svg>`;
  pointer.style = "position: fixed; z-index: 9; pointer-events: none";
  document.body.append(pointer);
  document.addEventListener("mousemove", ({ clientX, clientY }) => {
    pointer.style.left = `${clientX}px`;
    pointer.style.top = `${clientY}px`;
  });
}"""


class Recorder:
    """Takes pictures of a page."""

    def __init__(self, page: Page) -> None:
        """page: it has loaded."""
        self.frames: list[tuple[Image.Image, int]] = []  # each with the milliseconds for which it is shown
        self._page = page
        page.evaluate(POINTER)

    def shoot(self, milliseconds: int) -> None:
        """Add a picture of the page as it is."""
        picture = Image.open(io.BytesIO(self._page.screenshot())).convert("RGB")
        self.frames.append((picture.resize(SIZE, Image.Resampling.LANCZOS), milliseconds))

    def press(self, target: Locator) -> None:
        """Point at something, then press it."""
        target.hover()
        self.shoot(POINT)
        target.click()


def main() -> None:
    """Record the demo and write the film."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        film = write_camera_film(Path(folder) / "camera.mjpeg")
        options = ["--no-sandbox", "--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={film}"]
        server, address = start_server()
        try:
            with playwright.chromium.launch(executable_path=find_browser(), args=options) as browser:
                size = dict(zip(("width", "height"), PAGE, strict=True))
                page = browser.new_context(viewport=size, permissions=["camera"]).new_page()
                page.set_default_timeout(STARTING)
                page.goto(address, wait_until="domcontentloaded")
                frames = record(page)
        finally:
            server.terminate()
            server.wait()
    (first, *others), times = zip(*frames, strict=True)
    # WebP, because 256 colors, as in a GIF, are too few for the page and a photo.
    first.save(FILM, save_all=True, append_images=others, duration=times, loop=0, quality=85)
    print(f"{FILM}: {FILM.stat().st_size / 1e6:.2f} MB, {sum(times) / 1000:.1f} s")


def write_camera_film(path: Path) -> Path:
    """Write what the camera sees, 30 frames a second."""
    examples = load_examples()
    with path.open("wb") as film:
        for name, left in POSES.items():
            frame, jpeg = Image.new("RGB", (640, 480), "gray"), io.BytesIO()
            frame.paste(Image.open(io.BytesIO(examples[name])).resize((480, 480)), (left, 0))
            frame.save(jpeg, "JPEG", quality=95)
            film.write(30 * POSE * jpeg.getvalue())
    return path


def start_server() -> tuple[subprocess.Popen, str]:
    """Start the demo on a free port; returns its process and address when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([ROOT / "run_demo.sh", "--no-browser", f"--port={port}"])
    deadline = time.monotonic() + STARTING / 1000
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return process, f"http://localhost:{port}"
        except OSError:
            time.sleep(0.2)
    process.kill()
    raise SystemExit("make_demo_film: ./run_demo.sh has not started; see above")


def find_browser() -> str:
    """Return the path of a browser that Playwright can drive; SystemExit if there is none."""
    names = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
    path = os.environ.get("FER_BROWSER") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        raise SystemExit("make_demo_film: no Chromium or Chrome was found; install one, or set FER_BROWSER")
    return path


def record(page: Page) -> list[tuple[Image.Image, int]]:
    """Work the page as a visitor would; returns pictures of it, each with the milliseconds for which it is shown."""
    wait_for_photo(page, "photo")
    recorder = Recorder(page)
    recorder.shoot(LOOK)
    for name in ("surprise", "happy"):
        recorder.press(page.get_by_role("button", name=name))
        wait_for_photo(page, name)
        recorder.shoot(LOOK)
    recorder.press(page.get_by_role("switch", name="Grad-CAM"))
    page.locator("figcaption", has_text="Grad-CAM").wait_for()
    recorder.shoot(LOOK)
    recorder.press(page.get_by_role("tab", name="Webcam"))
    recorder.press(page.get_by_role("button", name="Start camera"))
    page.locator("[data-part=webcam] .card").wait_for()
    for _ in range(len(POSES) * POSE // PAUSE):
        recorder.shoot(LIVE)
        page.wait_for_timeout(1000 * PAUSE)
    return recorder.frames


def wait_for_photo(page: Page, name: str) -> None:
    """Wait until an example and its faces are shown."""
    page.get_by_role("img", name=name, exact=True).wait_for()
    page.locator("[data-part=photoResults]:not([aria-busy]) .card").wait_for()


if __name__ == "__main__":
    main()
