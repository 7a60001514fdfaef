"""Explore panels: controls under a cell that redraw it. The only module that imports ipywidgets."""

import html
import io
import os
import threading
import traceback
from collections.abc import Callable

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure

HEADLESS = "FER_HEADLESS"  # set by run_all.sh: nobody is there to move a control


def is_headless() -> bool:
    """True when the notebook is executed by run_all.sh rather than by a person."""
    return bool(os.environ.get(HEADLESS))


def explore(draw: Callable[..., Figure], **controls: ipywidgets.Widget) -> None:
    """Show a panel: moving a control calls draw with the controls' values and shows the Figure it returns.

    A headless run calls draw once with the starting values and lets its errors through, so that a broken panel fails
    the run. In a live panel an error is shown in place of the figure.
    """
    if is_headless():
        show_once(draw(**{name: control.value for name, control in controls.items()}))
        return
    for name, control in controls.items():
        _label(control, name)
    output = ipywidgets.interactive_output(lambda **values: show_once(draw(**values)), controls)
    display(ipywidgets.VBox([ipywidgets.HBox(list(controls.values()), layout={"flex_flow": "row wrap"}), output]))


def explore_run(run: Callable[..., Figure | None], button: str = "Run", **controls: ipywidgets.Widget) -> None:
    """Show a panel for work that takes a while: it starts on a button, shows a live figure, and can be stopped.

    run is called as run(show=..., **values). It calls show(figure) whenever there is something new; show returns True
    once Stop was pressed, and run should then end soon. A headless run calls it once, with errors let through.
    """
    if is_headless():
        figures: list[Figure] = []
        run(show=lambda figure: figures.append(figure) or False, **{n: c.value for n, c in controls.items()})
        show_once(figures[-1])
        return
    start = ipywidgets.Button(description=button, icon="play", button_style="primary")
    stop = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
    picture, messages = ipywidgets.Image(format="png"), ipywidgets.HTML()
    stopped = threading.Event()

    def show(figure: Figure) -> bool:
        picture.value = _png(figure)
        return stopped.is_set()

    def work() -> None:
        try:
            run(show=show, **{name: control.value for name, control in controls.items()})
            messages.value = "stopped" if stopped.is_set() else "done"
        except Exception:  # whatever it is, the person at the panel must see it: nobody reads a thread's stderr
            messages.value = f"<pre>{html.escape(traceback.format_exc(limit=-2))}</pre>"
        start.disabled, stop.disabled = False, True

    def begin(_: object) -> None:
        stopped.clear()
        messages.value = "running"
        start.disabled, stop.disabled = True, False
        threading.Thread(target=work, daemon=True).start()

    start.on_click(begin)
    stop.on_click(lambda _: stopped.set())
    for name, control in controls.items():
        _label(control, name)
    rows = [ipywidgets.HBox(list(controls.values()), layout={"flex_flow": "row wrap"}), ipywidgets.HBox([start, stop])]
    display(ipywidgets.VBox([*rows, picture, messages]))


def show_once(figure: Figure) -> None:
    """Display a figure exactly once, also where the inline backend would show it again at the end of the cell."""
    display(figure)
    plt.close(figure)


def _label(control: ipywidgets.Widget, name: str) -> None:
    """Give a control its name as label, room for both, and redraw only when a slider is let go."""
    control.description = control.description or name.replace("_", " ")
    control.layout.width = control.layout.width or "22rem"
    control.style = {"description_width": "initial"}
    if hasattr(control, "continuous_update"):
        control.continuous_update = False


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
