"""Tables and Markdown as HTML."""

import os
import re
from html import escape
from pathlib import Path

import mistune
import pandas as pd

to_plain_html = mistune.create_markdown(escape=True, plugins=["table"])


NUMBER = re.compile(r"-|(< )?[+-]?[\d,]*\.?\d+( to [+-]?[\d,]*\.?\d+)?")
INTERVAL = re.compile(r"\([^() ]+ to [^() ]+\)")
SHORT, LONG = 24, 50  # characters


def to_html(table: pd.DataFrame) -> str:
    """Return a table of texts, as readable_table makes it, as HTML.

    Columns of numbers are marked as such, and so are short and long cells: the style sheet keeps a browser from
    wrapping a long text after every word. An interval such as (0.1 to 0.2) stays on one line.
    """
    numeric = [column for column in table if all(NUMBER.fullmatch(text) for text in table[column])]
    heads = "".join(f'<th scope="col"{_mark(column in numeric)}>{escape(str(column))}</th>' for column in table)
    rows = [
        "".join(_make_cell(text, column in numeric) for column, text in zip(table, row, strict=True))
        for row in table.itertuples(index=False)
    ]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _make_cell(text: str, is_number: bool) -> str:
    kind = "short" if len(text) <= SHORT else "long" if len(text) >= LONG else ""
    whole = INTERVAL.sub(lambda interval: interval[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
    return f"<td{_mark(is_number) or (kind and f' class={kind}')}>{escape(whole, quote=False)}</td>"


def _mark(is_number: bool) -> str:
    return " class=number" if is_number else ""


def markdown_to_html(text: str) -> str:
    """Return Markdown as HTML. Formulas are few and short, so they are shown as plain text."""
    plain = re.sub(r"\$([^$\n]+)\$", lambda formula: formula[1].replace("\\", ""), text)
    return to_plain_html(plain)


def section_to_html(page: Path, heading: str, reports: Path) -> str:
    """Return one section of a page in docs/ as HTML, without its heading; heading "": the tables of the whole page.

    Relative links are those of the page; they are changed so that they also lead there from `reports`.
    """
    text = page.read_text(encoding="utf8")
    pattern = rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)" if heading else r"(^\|.*^\|[^\n]*$)"
    [body] = re.findall(pattern, text, re.DOTALL | re.MULTILINE)
    html = re.sub(
        r'href="(?!https?:|#)([^"#]*)', lambda link: _move_link(link[1], page, reports), markdown_to_html(body)
    )
    scroll = '<div class="scroll" tabindex="0" role="region" aria-label="Table">'
    return html.replace("<table>", f"{scroll}<table>").replace("</table>", "</table></div>")


def _move_link(target: str, page: Path, reports: Path) -> str:
    moved = os.path.relpath((page.parent / target).resolve(), reports.resolve())
    return f'href="{Path(moved).as_posix()}'
