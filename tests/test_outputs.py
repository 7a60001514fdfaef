"""What a cell prints: merged in the same way in every run, and never more than fits into memory."""

import time

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from fer_utils.pipeline import engine
from fer_utils.pipeline.engine import HeadlessClient
from fer_utils.pipeline.outputs import LEFT_OUT, merge_streams, overwrite_lines, shorten


def stream(text: str, name: str = "stdout") -> dict:
    return {"msg_type": "stream", "content": {"name": name, "text": text}}


def display(html: str) -> dict:
    return {"msg_type": "display_data", "content": {"metadata": {}, "data": {"text/html": html}}}


ERROR = {"msg_type": "error", "content": {"ename": "ValueError", "evalue": "no", "traceback": []}}


class Manager:
    nb = new_notebook(cells=[new_code_cell()])


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> HeadlessClient:
    monkeypatch.setattr(engine, "MAX_CHARACTERS", 20)
    client = HeadlessClient(Manager(), sockets="")
    client.clear_before_next_output = False  # as at the start of a cell
    return client


def outputs_of(client: HeadlessClient, *messages: dict) -> list[dict]:
    outs: list[dict] = []
    for message in messages:
        message = message | {"parent_header": {}, "header": {"msg_type": message["msg_type"]}}
        client.output(outs, message, None, 0)
    return outs


def test_outputs_of_a_cell_end_at_the_limit_but_its_error_is_kept(client: HeadlessClient) -> None:
    outs = outputs_of(client, stream("0123456789"), *[stream("abcdefghijklmnop")] * 50, display("<b>more</b>"), ERROR)
    assert [output.get("text", output.get("ename")) for output in outs[:1] + outs[2:]] == ["0123456789", "ValueError"]
    assert outs[1].text.endswith(f"\n{LEFT_OUT}\n") and outs[1].text.startswith("abcd")
    assert len(outs) == 3


def test_display_that_is_too_long_is_left_out_and_said(client: HeadlessClient) -> None:
    assert outputs_of(client, display("<p>" * 100))[0].text == f"\n{LEFT_OUT}\n"


def test_cell_that_clears_its_output_may_go_on(client: HeadlessClient) -> None:
    outs = outputs_of(client, stream("x" * 30))
    client.clear_output(outs, {"content": {"wait": False}, "parent_header": {}}, 0)
    assert outs == [] and outputs_of(client, stream("next"))[0].text == "next"


def printed(*pieces: tuple[str, str]) -> dict:
    """A cell that printed these pieces to these streams. The stream "display" stands for a figure."""
    return new_code_cell(
        outputs=[
            new_output("display_data", data={}) if name == "display" else new_output("stream", name=name, text=text)
            for name, text in pieces
        ]
    )


@pytest.mark.parametrize(
    ("pieces", "merged"),
    [
        ([("stdout", "a"), ("stdout", "b\n"), ("display", ""), ("stdout", "c")], ["ab\nc", "figure"]),
        ([("stderr", "oh"), ("stdout", "a"), ("stderr", " no")], ["a", "oh no"]),
        ([("stderr", "oh"), ("display", ""), ("stdout", "a")], ["oh", "figure", "a"]),
        ([("stdout", "10 %\r20 %\r"), ("stdout", "done\r\nnext")], ["done\r\nnext"]),
    ],
)
def test_streams_are_merged(pieces: list[tuple[str, str]], merged: list[str]) -> None:
    cell = printed(*pieces)
    merge_streams(cell)
    assert [output.get("text", "figure") for output in cell.outputs] == merged


def test_time_to_merge_is_linear_in_the_length_of_a_line() -> None:
    cell = printed(*[("stdout", "x" * 500_000)] * 10)
    started = time.monotonic()
    merge_streams(cell)
    overwrite_lines("\r".join(["x" * 1000] * 5000))
    assert time.monotonic() - started < 2


def test_published_notebooks_leave_out_the_middle_of_long_outputs() -> None:
    printed = "".join(f"line {number}\n" for number in range(610))
    lines = shorten(printed).splitlines()
    assert lines[0] == "line 0" and lines[-1] == "line 609" and len(lines) == 101
    assert lines[50] == "[... 510 lines left out ...]"
    assert shorten("".join(printed.splitlines(keepends=True)[:100])).count("\n") == 100


def test_published_notebooks_leave_out_the_end_of_long_lines() -> None:
    assert shorten("x" * 1000 + "\n") == "x" * 1000 + "\n"
    assert shorten("x" * 3500 + "\nnext") == "x" * 1000 + " [... 2,500 characters left out ...]\nnext"
