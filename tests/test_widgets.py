"""Explore panels: what a headless run does with them, and that live ones answer."""

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


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def panel_parts(shown):
    box = shown[0]
    _, buttons, picture, messages = box.children
    return *buttons.children, picture, messages


def test_long_work_shows_its_figure_and_stops_on_request(shown, monkeypatch):
    monkeypatch.delenv(widgets.HEADLESS, raising=False)
    steps = []

    def work(show, slope):
        while not show(draw_line(slope)):
            steps.append(slope)
            time.sleep(0.01)

    widgets.explore_run(work, slope=ipywidgets.IntSlider(3))
    start, stop, picture, _ = panel_parts(shown)
    start.click()
    wait_until(lambda: len(steps) > 2)
    assert start.disabled and bytes(picture.value).startswith(b"\x89PNG")
    stop.click()
    wait_until(lambda: not start.disabled)
    assert stop.disabled


def test_long_work_shows_its_errors(shown, monkeypatch):
    monkeypatch.delenv(widgets.HEADLESS, raising=False)
    widgets.explore_run(lambda show, slope: 1 / slope, slope=ipywidgets.IntSlider(0))
    start, _, _, messages = panel_parts(shown)
    start.click()
    wait_until(lambda: "ZeroDivisionError" in messages.value)
    assert not start.disabled
