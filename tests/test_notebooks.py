"""Every notebook keeps to the course's form: stripped, one parameters cell, a question, takeaways and exercises."""

import ast
import importlib.util
import re

import nbformat
import pytest

from fer_utils.paths import PROJECT_ROOT
from fer_utils.pipeline.stages import STAGES

NOTEBOOKS = sorted((PROJECT_ROOT / "notebooks").glob("[0-9]*.ipynb"))  # without the demo, which is no lesson
COMMON_PARAMETERS = {"data", "profile", "device", "out", "inputs"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def text_of(notebook, kind):
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def test_every_notebook_is_a_stage_and_every_stage_a_notebook():
    assert [path.stem for path in NOTEBOOKS] == sorted(stage.name for stage in STAGES)


def test_a_stage_stands_behind_the_stages_that_it_needs():
    names = [stage.name for stage in STAGES]
    assert all(set(stage.needs) <= set(names[:place]) for place, stage in enumerate(STAGES))


def test_what_a_notebook_takes_over_is_declared():
    for path, stage in zip(NOTEBOOKS, sorted(STAGES, key=lambda stage: stage.name), strict=True):
        code = "\n".join(text_of(nbformat.read(path, as_version=4), "code"))
        read = re.findall(r'"(\d\d_\w+)", "(\w+\.\w+)"', code)  # as in published(inputs, stage, file)
        for need, file in read:
            assert f"checkpoints/{file}" in stage.needs[need], f"{path.stem} reads {file}"
        made = {other.name: other.gives for other in STAGES}
        tables = [(need, file) for need, files in stage.needs.items() for file in files if file.startswith("tables/")]
        assert all(file in made[need] for need, file in tables)


def test_stripped(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            assert set(cell.metadata) <= {"tags"}


def test_one_parameters_cell_with_literals_only(notebook):
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1
    names = set()
    for statement in ast.parse(cells[0].source).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)
        names.add(statement.targets[0].id)
    assert names >= COMMON_PARAMETERS


def test_begins_with_a_question_and_ends_with_takeaways_and_exercises(notebook):
    markdown = text_of(notebook, "markdown")
    first_line = markdown[0].splitlines()[0]
    assert first_line.startswith("# ") and first_line.endswith("?")
    for section in ("You will learn", "Inputs", "Artifacts", "Time"):
        assert section in markdown[0]
    for section in ("## Takeaways", "Limits", "## Exercises", "**Next:**"):
        assert section in markdown[-1]


def test_every_exercise_has_a_hint(notebook):
    exercises, hints = text_of(notebook, "markdown")[-1].split("## Exercises")[1].split("<details>")
    numbered = re.compile(r"^\d+\. ", re.MULTILINE)
    assert numbered.findall(exercises) == numbered.findall(hints) != []


def test_has_expectations_and_checks(notebook):
    assert sum("What do you expect?" in text for text in text_of(notebook, "markdown")) >= 2
    assert sum("assert " in text for text in text_of(notebook, "code")) >= 3


def test_has_an_explore_panel(notebook):
    assert any(
        text.lstrip().startswith(("explore(", "explore_run(")) or "\nexplore(" in text
        for text in text_of(notebook, "code")
    )


def is_list_of_names(cell):
    """Imports and parameters: long, but nobody has to follow them."""
    return "parameters" in cell.metadata.get("tags", []) or cell.source.startswith(("import ", "from "))


def test_cells_can_be_read_at_once(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and not is_list_of_names(cell)]
    sizes = [(len(cell.source.splitlines()), len(cell.source)) for cell in cells]
    for cell, (lines, characters) in zip(cells, sizes, strict=True):
        assert lines <= 24 and characters <= 1000, f"split this cell, or name a helper:\n{cell.source}"
        assert max(map(len, cell.source.splitlines())) <= 88, cell.source
        assert "# fmt: skip" not in cell.source, cell.source
    assert sum(lines <= 16 and characters <= 650 for lines, characters in sizes) >= 0.8 * len(sizes)


def test_without_the_package_the_first_cell_says_in_one_sentence_what_to_do(notebook, monkeypatch):
    first = text_of(notebook, "code")[0]
    exec(first)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssertionError, match=r"^fer_utils is not installed here: choose the kernel of the project's"):
        exec(first)
