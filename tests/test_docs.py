"""README and docs/: short enough to be read, and no link leads nowhere."""

import re

import pytest

from fer_utils.paths import PROJECT_ROOT

README_LINES = 150
PAGES = [PROJECT_ROOT / "README.md", *sorted((PROJECT_ROOT / "docs").glob("*.md"))]
OTHER_PAGES = [
    PROJECT_ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "data/README.md", "models/README.md")
]
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)  # comments in shell code look like headings


def anchors(text):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def dead_links(page):
    """The relative links of a page that lead to no file of the project, or to no heading of a page."""
    text, dead = page.read_text(encoding="utf8"), []
    for link in LINK.findall(FENCED.sub("", text)):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if re.match(r"https?:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf8"))):
            dead.append(link)
    return dead


def test_readme_is_short_and_names_every_page():
    text = (PROJECT_ROOT / "README.md").read_text(encoding="utf8")
    assert len(text.splitlines()) <= README_LINES
    assert len(PAGES) >= 5
    for page in PAGES[1:]:
        assert f"](docs/{page.name})" in text, f"README does not link to {page.name}"


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES])
def test_relative_links_lead_to_files_and_headings(page):
    assert dead_links(page) == []


def test_dead_links_are_noticed(tmp_path):
    (tmp_path / "other.md").write_text("# A heading, with `code`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md) [b](other.md#a-heading-with-code) [c](#here) [d](https://example.org/x#y)\n"
        "![e](missing.png) [f](other.md#no-heading) [g](#nowhere)\n```\n# not a heading\n```\n[h](#not-a-heading)\n"
    )
    assert dead_links(page) == ["missing.png", "other.md#no-heading", "#nowhere", "#not-a-heading"]


def test_tables_name_every_notebook_and_define_every_term_once():
    notebooks = sorted(path.name for path in (PROJECT_ROOT / "notebooks").glob("[0-9]*.ipynb"))
    for page in ("README.md", "docs/syllabus.md"):
        rows = re.findall(
            r"^\| \[\w+\]\((?:\.\./)?notebooks/(\w+\.ipynb)\)", (PROJECT_ROOT / page).read_text(), re.MULTILINE
        )
        assert rows == notebooks, page
    rows = re.findall(
        r"^\| \*\*(.+?)\*\* \| (.+) \| \[\w+\]\(", (PROJECT_ROOT / "docs/glossary.md").read_text(), re.MULTILINE
    )
    terms = [term.lower() for term, _ in rows]
    assert len(terms) > 50 and terms == sorted(set(terms))
