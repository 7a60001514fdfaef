"""Read what a notebook asks and what its readers take away: its title, and the list in its last cell."""

import json
import re
from pathlib import Path

from fer_utils.paths import PROJECT_ROOT

NOTEBOOKS = PROJECT_ROOT / "notebooks"
MOST_TAKEAWAYS = 5


def read_question(name: str, notebooks: Path = NOTEBOOKS) -> str:
    """Return the title of a notebook, which is its question; the name itself when there is no such notebook."""
    texts = _read_markdown(notebooks / f"{name}.ipynb")
    return texts[0].splitlines()[0].lstrip("# ") if texts else name.replace("_", " ")


def read_takeaways(name: str, notebooks: Path = NOTEBOOKS) -> str:
    """Return the first takeaways of a notebook, without its limits, as a Markdown list; "" when it has none."""
    last = _read_markdown(notebooks / f"{name}.ipynb")[-1:]
    section = re.search(r"^## Takeaways\n(.*?)(?=^## |\Z)", "".join(last), re.DOTALL | re.MULTILINE)
    bullets = re.split(r"^- ", section[1], flags=re.MULTILINE)[1:] if section else []
    chosen = [" ".join(bullet.split()) for bullet in bullets if not bullet.startswith("**Limits")]
    return "".join(f"- {bullet}\n" for bullet in chosen[:MOST_TAKEAWAYS])


def _read_markdown(notebook: Path) -> list[str]:
    """Return the Markdown cells of a notebook; none when there is no such file."""
    if not notebook.is_file():
        return []
    cells = json.loads(notebook.read_text(encoding="utf8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
