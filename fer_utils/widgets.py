"""Interactive panels: figures with controls, and long-running work with a Stop button.

Only this module imports ipywidgets. The page of the demo is a widget of its own, see fer_utils.demo.
"""

import base64
import gc
import html
import io
import os
import threading
import traceback
from collections.abc import Callable

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import display
from IPython.utils.capture import capture_output
from matplotlib.figure import Figure

HEADLESS = "FER_HEADLESS"  # environment variable, set by run_all.sh: no person uses the controls


def is_headless() -> bool:
    """Check whether run_all.sh, not a person, executes the notebook."""
    return bool(os.environ.get(HEADLESS))


def explore(draw: Callable[..., Figure], **controls: ipywidgets.Widget) -> None:
    """Show a panel: when a control changes, call draw with the values of all controls and show the Figure it returns.

    A headless run calls draw once with the initial values and raises its errors, so a broken panel fails the run. A
    live panel shows errors in place of the figure.
    """
    if is_headless():
        show_once(draw(**_values(controls)))
        return
    output = ipywidgets.Output()
    # Otherwise the garbage collector scans all objects of the notebook every few redraws, which takes 0.4 s.
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
    """Collect as notebook outputs: what draw prints and displays, and the Figure it returns or its error.

    The Output widget does not collect them, because in Voila it sends a message for each output while the cell is still
    running. If such a message crosses the reply of the kernel, the reply is lost and the page never appears.
    """
    with capture_output() as captured:
        try:
            png = base64.b64encode(_png(draw(**values))).decode()
            last = {"output_type": "display_data", "data": {"image/png": png}, "metadata": {}}
        except Exception:  # any error must be visible in the panel
            last = {"output_type": "stream", "name": "stderr", "text": traceback.format_exc(limit=-2)}
    printed = [{"output_type": "stream", "name": "stdout", "text": captured.stdout}] if captured.stdout else []
    displays = [{"output_type": "display_data", "data": o.data, "metadata": o.metadata or {}} for o in captured.outputs]
    return [*printed, *displays, last]


def explore_run(run: Callable[..., str | None], button: str = "Run", **controls: ipywidgets.Widget) -> None:
    """Show a panel for long-running work, with a start button, a live figure and a Stop button.

    run is called as run(show=..., **values). It calls show(figure, done) to update the figure; done, from 0 to 1, moves
    the progress bar and may be left out. After Stop, show returns True, and run should end soon. If run returns a text,
    the panel shows it at the end. A headless run calls run once, raises its errors, and shows its last figure.
    """
    if is_headless():
        _run_once(run, controls)
        return
    start = ipywidgets.Button(description=button, icon="play", button_style="primary")
    stop = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
    bar = ipywidgets.FloatProgress(max=1, description="progress", layout={"visibility": "hidden"})
    # Not as wide as the page, and hidden until there is a figure: an empty image looks broken.
    picture = ipywidgets.Image(format="png", layout={"align_self": "flex-start", "display": "none"})
    messages = ipywidgets.HTML()
    stopped = threading.Event()

    def show(figure: Figure, done: float | None = None) -> bool:
        picture.value, picture.layout.display = _png(figure), None
        if done is not None:
            bar.value, bar.layout.visibility = done, "visible"
        return stopped.is_set()

    def work() -> None:
        try:
            text = run(show=show, **_values(controls))
            messages.value = html.escape(text or ("stopped" if stopped.is_set() else "done"))
        except Exception:  # any error must be visible in the panel, because nobody reads the stderr of a thread
            messages.value = f"<pre>{html.escape(traceback.format_exc(limit=-2))}</pre>"
        finally:
            start.disabled, stop.disabled = False, True

    def begin(_: object) -> None:
        stopped.clear()
        bar.value, messages.value = 0, "running"
        start.disabled, stop.disabled = True, False
        threading.Thread(target=work, daemon=True).start()

    def end(_: object) -> None:
        messages.value = "stopping after the current step"
        stopped.set()

    start.on_click(begin)
    stop.on_click(end)
    for name, control in controls.items():
        _label(control, name)
    display(ipywidgets.VBox([_row(controls), ipywidgets.HBox([start, stop, bar]), picture, messages]))


def _run_once(run: Callable[..., str | None], controls: dict[str, ipywidgets.Widget]) -> None:
    figures: list[Figure] = []

    def show(figure: Figure, done: float | None = None) -> bool:
        plt.close(figure)  # otherwise the inline backend displays it again at the end of the cell
        figures.append(figure)
        return False

    text = run(show=show, **_values(controls))
    display(figures[-1])
    if text:
        print(text)


def show_once(figure: Figure) -> None:
    """Display a figure exactly once; the inline backend would show it again at the end of the cell."""
    display(figure)
    plt.close(figure)


def _values(controls: dict[str, ipywidgets.Widget]) -> dict[str, object]:
    return {name: control.value for name, control in controls.items()}


def _row(controls: dict[str, ipywidgets.Widget]) -> ipywidgets.HBox:
    return ipywidgets.HBox(list(controls.values()), layout={"flex_flow": "row wrap"})


def _label(control: ipywidgets.Widget, name: str) -> None:
    """Use the name of a control as its label, make room for both, and redraw only when a slider is released."""
    control.description = control.description or name.replace("_", " ")
    control.layout.width = control.layout.width or "22rem"
    if control.style.has_trait("description_width"):  # not on buttons
        control.style.description_width = "initial"
    if hasattr(control, "continuous_update"):
        control.continuous_update = False


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Speed matters more than size: a higher resolution or a stronger compression would take twice as long.
    figure.savefig(buffer, format="png", dpi="figure", pil_kwargs={"compress_level": 1})
    plt.close(figure)
    return buffer.getvalue()
