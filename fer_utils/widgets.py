"""Explore panels: controls under a cell that redraw it, long work with a Stop button, and the webcam.

The only module that imports ipywidgets and anywidget.
"""

import base64
import gc
import html
import io
import os
import threading
import traceback
from collections.abc import Callable

import anywidget
import cv2
import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display
from IPython.utils.capture import capture_output
from matplotlib.figure import Figure

from fer_utils.paths import ASSETS

HEADLESS = "FER_HEADLESS"  # set by run_all.sh: nobody is there to move a control


def is_headless() -> bool:
    """True when the notebook is executed by run_all.sh rather than by a person."""
    return bool(os.environ.get(HEADLESS))


def is_page() -> bool:
    """True when Voila shows the notebook as a web page, whose visitor waits for all cells to run."""
    return os.environ.get("SERVER_SOFTWARE", "").startswith("voila/")


def explore(draw: Callable[..., Figure], **controls: ipywidgets.Widget) -> None:
    """Show a panel: moving a control calls draw with the controls' values and shows the Figure it returns.

    A headless run calls draw once with the starting values and lets its errors through, so that a broken panel fails
    the run. In a live panel an error is shown in place of the figure.
    """
    if is_headless():
        show_once(draw(**_values(controls)))
        return
    output = ipywidgets.Output()
    # Without this, every few redraws the collector goes through all that the notebook holds, which takes 0.4 s.
    gc.collect()
    gc.freeze()

    def redraw(_: object = None) -> None:
        output.outputs = _outputs(draw, _values(controls))

    for name, control in controls.items():
        _label(control, name)
        control.observe(redraw, "value")
    redraw()
    display(ipywidgets.VBox([_row(controls), output]))


def _outputs(draw: Callable[..., Figure], values: dict[str, object]) -> list[dict]:
    """What draw prints and displays, and the Figure that it returns or its error, as outputs of a notebook.

    They are not left to the Output widget to collect: Voila answers each with a message of its own while the cell still
    runs, and where that crosses the kernel's reply the reply is lost and the page never appears.
    """
    with capture_output() as captured:
        try:
            png = base64.b64encode(_png(draw(**values))).decode()
            last = {"output_type": "display_data", "data": {"image/png": png}, "metadata": {}}
        except Exception:  # whatever it is, the person at the panel must see it
            last = {"output_type": "stream", "name": "stderr", "text": traceback.format_exc(limit=-2)}
    printed = [{"output_type": "stream", "name": "stdout", "text": captured.stdout}] if captured.stdout else []
    shown = [{"output_type": "display_data", "data": o.data, "metadata": o.metadata or {}} for o in captured.outputs]
    return [*printed, *shown, last]


def explore_run(run: Callable[..., str | None], button: str = "Run", **controls: ipywidgets.Widget) -> None:
    """Show a panel for work that takes a while: it starts on a button, shows a live figure, and can be stopped.

    run is called as run(show=..., **values). It calls show(figure, done) whenever there is something new; done, from 0
    to 1, moves the progress bar and may be left out. show returns True once Stop was pressed, and run should then end
    soon. A text that run returns is shown at its end. A headless run calls it once, with errors let through, and shows
    its last figure.
    """
    if is_headless():
        _run_once(run, controls)
        return
    start = ipywidgets.Button(description=button, icon="play", button_style="primary")
    stop = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
    bar = ipywidgets.FloatProgress(max=1, description="progress", layout={"visibility": "hidden"})
    picture = ipywidgets.Image(format="png", layout={"align_self": "flex-start"})  # not as wide as the page
    messages = ipywidgets.HTML()
    stopped = threading.Event()

    def show(figure: Figure, done: float | None = None) -> bool:
        picture.value = _png(figure)
        if done is not None:
            bar.value, bar.layout.visibility = done, "visible"
        return stopped.is_set()

    def work() -> None:
        try:
            text = run(show=show, **_values(controls))
            messages.value = html.escape(text or ("stopped" if stopped.is_set() else "done"))
        except Exception:  # whatever it is, the person at the panel must see it: nobody reads a thread's stderr
            messages.value = f"<pre>{html.escape(traceback.format_exc(limit=-2))}</pre>"
        finally:
            start.disabled, stop.disabled = False, True

    def begin(_: object) -> None:
        stopped.clear()
        bar.value, messages.value = 0, "running"
        start.disabled, stop.disabled = True, False
        threading.Thread(target=work, daemon=True).start()

    def end(_: object) -> None:
        messages.value = "stopping: the step that it is at is finished first"
        stopped.set()

    start.on_click(begin)
    stop.on_click(end)
    for name, control in controls.items():
        _label(control, name)
    display(ipywidgets.VBox([_row(controls), ipywidgets.HBox([start, stop, bar]), picture, messages]))


def _run_once(run: Callable[..., str | None], controls: dict[str, ipywidgets.Widget]) -> None:
    figures: list[Figure] = []

    def show(figure: Figure, done: float | None = None) -> bool:
        plt.close(figure)  # the inline backend would display all that are open at the end of the cell
        figures.append(figure)
        return False

    text = run(show=show, **_values(controls))
    display(figures[-1])
    if text:
        print(text)


def explore_webcam(
    answer: Callable[..., tuple[np.ndarray, str]], example: np.ndarray, **controls: ipywidgets.Widget
) -> None:
    """Show a panel with the webcam, live: what answer(frame, **values) makes of each frame.

    Frames, `example`, and the picture that answer returns with a line of text, are (H,W,3) uint8, RGB. A headless run
    answers the example once, with errors let through.
    """
    if is_headless():
        picture, text = answer(example, **_values(controls))
        print(text)
        display(Image(_jpeg(picture), format="jpeg"))
        return
    for name, control in controls.items():
        _label(control, name)
    display(ipywidgets.VBox([_row(controls), Webcam(lambda frame: answer(frame, **_values(controls)))]))


class Webcam(anywidget.AnyWidget):
    """The visitor's camera. The browser sends one frame and waits for its answer before it sends the next."""

    _esm = ASSETS / "webcam.js"

    def __init__(self, answer: Callable[[np.ndarray], tuple[np.ndarray, str]]) -> None:
        """answer: frame (H,W,3) uint8 RGB -> a picture of any size and a line of text to show."""
        super().__init__()
        self._answer = answer
        self.on_msg(self._reply)

    def _reply(self, _: object, content: dict, buffers: list[memoryview]) -> None:
        """Answer one frame; content, which says whose and which frame it is, goes back with the answer."""
        try:
            frame = cv2.imdecode(np.frombuffer(buffers[0], np.uint8), cv2.IMREAD_COLOR)
            picture, text = self._answer(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            pictures = [_jpeg(picture)]
        except Exception as error:  # whatever it is, the person at the camera must see it, and the next frame may work
            pictures, text = [], f"{type(error).__name__}: {error}"
        self.send({**content, "text": text}, pictures)


def show_once(figure: Figure) -> None:
    """Display a figure exactly once, also where the inline backend would show it again at the end of the cell."""
    display(figure)
    plt.close(figure)


def _values(controls: dict[str, ipywidgets.Widget]) -> dict[str, object]:
    return {name: control.value for name, control in controls.items()}


def _row(controls: dict[str, ipywidgets.Widget]) -> ipywidgets.HBox:
    return ipywidgets.HBox(list(controls.values()), layout={"flex_flow": "row wrap"})


def _label(control: ipywidgets.Widget, name: str) -> None:
    """Give a control its name as label, room for both, and redraw only when a slider is let go."""
    control.description = control.description or name.replace("_", " ")
    control.layout.width = control.layout.width or "22rem"
    if control.style.has_trait("description_width"):  # a button has not
        control.style.description_width = "initial"
    if hasattr(control, "continuous_update"):
        control.continuous_update = False


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Quick rather than small: the resolution of files would take twice as long, and so would packing tightly.
    figure.savefig(buffer, format="png", dpi="figure", pil_kwargs={"compress_level": 1})
    plt.close(figure)
    return buffer.getvalue()


def _jpeg(picture: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
