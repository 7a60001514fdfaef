"""Explore panels: what a headless run does with them, and that live ones answer."""

import base64
import time

import ipywidgets
import matplotlib.pyplot as plt
import pytest

from fer_utils import widgets


def draw_line(slope):
    fig, ax = plt.subplots()
    ax.plot([0, slope])
    return fig


@pytest.fixture
def shown(monkeypatch):
    """Everything that would have been displayed."""
    items = []
    monkeypatch.setattr(widgets, "display", items.append)
    return items


def test_headless_run_draws_once_with_the_starting_values(shown, monkeypatch):
    monkeypatch.setenv(widgets.HEADLESS, "1")
    slopes = []
    widgets.explore(lambda slope: slopes.append(slope) or draw_line(slope), slope=ipywidgets.IntSlider(3))
    assert slopes == [3] and len(shown) == 1 and plt.get_fignums() == []


def test_headless_run_fails_with_the_panel(monkeypatch):
    monkeypatch.setenv(widgets.HEADLESS, "1")
    with pytest.raises(ZeroDivisionError):
        widgets.explore(lambda slope: draw_line(1 / slope), slope=ipywidgets.IntSlider(0))
    with pytest.raises(ZeroDivisionError):
        widgets.explore_run(lambda show, slope: show(draw_line(1 / slope)), slope=ipywidgets.IntSlider(0))


def test_live_panel_redraws_when_a_control_moves(shown, monkeypatch):
    monkeypatch.delenv(widgets.HEADLESS, raising=False)
    slopes = []
    control = ipywidgets.IntSlider(3)
    widgets.explore(lambda slope: slopes.append(slope) or draw_line(slope), slope=control)
    control.value = 5
    assert slopes == [3, 5]
    assert control.description == "slope" and control.continuous_update is False
    assert control.style.description_width == "initial"


def test_controls_of_every_kind_get_a_label(shown, monkeypatch, recwarn):
    monkeypatch.delenv(widgets.HEADLESS, raising=False)
    controls = {"several_files": ipywidgets.FileUpload(description=""), "on": ipywidgets.Checkbox(description="switch")}
    widgets.explore(lambda several_files, on: draw_line(1), **controls)
    assert [control.description for control in controls.values()] == ["several files", "switch"]
    assert not [warning for warning in recwarn if "unrecognized" in str(warning.message)]


def test_live_panel_redraws_fast(shown, monkeypatch):
    monkeypatch.delenv(widgets.HEADLESS, raising=False)
    control = ipywidgets.IntSlider(3)
    widgets.explore(draw_line, slope=control)
    times = []
    for value in range(4, 9):
        start = time.thread_time()  # what it costs, whatever else the machine is doing
        control.value = value
        times.append(time.thread_time() - start)
    assert min(times) < 0.2, "seconds"
    assert plt.get_fignums() == []


def test_live_panel_shows_what_is_printed_and_errors_in_place_of_the_figure(shown, monkeypatch):
    monkeypatch.delenv(widgets.HEADLESS, raising=False)

    def draw(slope):
        print("slope", slope)
        return draw_line(1 / slope)

    control = ipywidgets.IntSlider(0)
    widgets.explore(draw, slope=control)
    output = shown[0].children[1]
    assert [part["text"][:7] for part in output.outputs[:1]] == ["slope 0"]
    assert "ZeroDivisionError" in output.outputs[-1]["text"]
    control.value = 1
    text, picture = output.outputs
    assert text["text"] == "slope 1\n" and base64.b64decode(picture["data"]["image/png"]).startswith(b"\x89PNG")


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def panel_parts(shown):
    box = shown[0]
    _, buttons, picture, messages = box.children
    start, stop, _ = buttons.children
    return start, stop, picture, messages


def test_long_work_shows_its_figure_and_stops_on_request(shown, monkeypatch):
    monkeypatch.delenv(widgets.HEADLESS, raising=False)
    steps = []

    def work(show, slope):
        while not show(draw_line(slope)):
            steps.append(slope)
            time.sleep(0.01)

    widgets.explore_run(work, slope=ipywidgets.IntSlider(3))
    start, stop, picture, messages = panel_parts(shown)
    assert picture.layout.display == "none", "without a figure, browsers show a broken picture"
    start.click()
    wait_until(lambda: len(steps) > 2)
    assert picture.layout.display is None
    assert start.disabled and bytes(picture.value).startswith(b"\x89PNG")
    stop.click()
    wait_until(lambda: not start.disabled)
    assert stop.disabled and messages.value == "stopped"


def test_long_work_shows_its_errors(shown, monkeypatch):
    monkeypatch.delenv(widgets.HEADLESS, raising=False)
    widgets.explore_run(lambda show, slope: 1 / slope, slope=ipywidgets.IntSlider(0))
    start, _, _, messages = panel_parts(shown)
    start.click()
    wait_until(lambda: "ZeroDivisionError" in messages.value)
    assert not start.disabled


def test_progress_bar_shows_the_share_that_is_done(shown, monkeypatch):
    monkeypatch.delenv(widgets.HEADLESS, raising=False)
    shares, seen = iter([None, 0.25, 1.0]), []

    def work(show):
        for share in shares:
            show(draw_line(1), *filter(None, [share]))
            seen.append((bar.layout.visibility, bar.value))

    widgets.explore_run(work)
    start, _, bar = shown[0].children[1].children
    start.click()
    wait_until(lambda: len(seen) == 3 and not start.disabled)
    assert seen == [("hidden", 0), ("visible", 0.25), ("visible", 1)]


def test_long_work_has_the_last_word(shown, monkeypatch):
    monkeypatch.delenv(widgets.HEADLESS, raising=False)
    widgets.explore_run(lambda show: "45 frames <and> 1 table")
    start, _, _, messages = panel_parts(shown)
    start.click()
    wait_until(lambda: not start.disabled)
    assert messages.value == "45 frames &lt;and&gt; 1 table"


def test_headless_long_work_shows_its_last_figure_and_word(shown, monkeypatch, capsys):
    monkeypatch.setenv(widgets.HEADLESS, "1")
    figures = [draw_line(1), draw_line(2)]
    widgets.explore_run(lambda show: [show(figure, 0.5) for figure in figures] and "two lines")
    assert shown == figures[1:] and capsys.readouterr().out == "two lines\n"
    assert plt.get_fignums() == [], "the inline backend would display what is still open"
