"""The runner, on tiny notebooks in a folder of their own: plan, run, publish, and everything that can go wrong."""

import base64
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import TextIO
from unittest.mock import patch

import numpy as np
import psutil
import pytest
from PIL import Image

from fer_utils.data import FER2013
from fer_utils.errors import DataError
from fer_utils.paths import PROJECT_ROOT
from fer_utils.pipeline import cli, execution, freshness, planning, publish, runner
from fer_utils.pipeline.lock import project_lock
from fer_utils.pipeline.notebooks import (
    CodeCell,
    UsageError,
    assign_overrides,
    check_value,
    parse_value,
    read_parameters,
)
from fer_utils.pipeline.provenance import code_state
from fer_utils.pipeline.stages import Stage

PARAMETERS = """\
data = "auto"
profile = "cpu"
device = "auto"
out = "outputs/my_run"
inputs = "reports"
"""
BEGIN = """\
from pathlib import Path
out = Path(out)
with open("../runs.txt", "a") as runs:
    print(out.name, file=runs)
def write(name, text):
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text(text)
"""
COUNT = BEGIN + "write('tables/01_count.csv', 'n\\n1\\n'); write('figures/01_count.csv', 'n\\n1\\n')"
TRAIN = f"""\
import sys, time
sys.path.insert(0, "..")
from fer_utils import helper
{BEGIN}
print("epoch  1/2  left 1 min", out, data, flush=True)
time.sleep(0.2)
print("epoch  2/2  left 0 min", flush=True)
write("checkpoints/last.txt", (Path(inputs) / "tables/01_count.csv").read_text())
write("predictions/02_train.csv", f"epochs {{epochs}} lr {{lr}}")
write("manifest.json", "{{}}")
"""
MINUTES = {"sample": 0.1, "cpu": 0.1, "full": 0.1}
COUNTING = Stage("01_count", gives=("tables/01_count.csv",), minutes=MINUTES)
TRAINING = Stage(
    "02_train",
    gives=("predictions/02_train.csv",),
    minutes=MINUTES,
    needs={"01_count": ("tables/01_*.csv",)},
    params={"cpu": {"epochs": 2}, "full": {"epochs": 9}},
)
STAGES = (COUNTING, TRAINING)


def cell(source: str, tags: tuple[str, ...] = (), **more: object) -> dict:
    return {
        "cell_type": "code",
        "metadata": {"tags": list(tags)},
        "execution_count": None,
        "outputs": [],
        "source": source,
    } | more


@contextmanager
def chdir(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_without_kernel(
    notebook: Path, target: Path, parameters: dict[str, object], cell_seconds: int, log: TextIO
) -> None:
    """Stands in for papermill and a kernel, which take seconds: runs the cells in this process."""
    content = json.loads(notebook.read_text())
    namespace: dict[str, object] = {}
    helper = types.ModuleType("fer_utils.helper")
    with redirect_stdout(log), chdir(notebook.parent), patch.dict(sys.modules, {"fer_utils.helper": helper}):
        for number, code in enumerate([each for each in content["cells"] if each["cell_type"] == "code"]):
            exec("".join(code["source"]), namespace)
            namespace |= {} if number else parameters
            code["execution_count"] = number + 1
    target.write_text(json.dumps(content))


class Project:
    """A project folder with notebooks, run with stand-ins for the data, the report and, unless asked, kernels."""

    def __init__(self, root: Path, has_kernels: bool = False) -> None:
        self.root, self.has_kernels = root, has_kernels
        self.stages = STAGES
        self.fingerprint = "f00d"
        self.free_gigabytes = {}  # name of a folder -> what is free there; 9 elsewhere, whatever this machine has

    def write_notebook(self, name: str, *cells: dict, parameters: str = "") -> None:
        markdown = {"cell_type": "markdown", "metadata": {}, "source": f"# {name}"}
        cells = (markdown, cell(PARAMETERS + parameters, ("parameters",)), *cells)
        cells = [{"id": f"cell-{number}", **any_cell} for number, any_cell in enumerate(cells)]
        path = self.root / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))

    def run(self, *argv: str) -> int:
        return self.main("--device", "cpu", *argv)

    def main(self, *argv: str) -> int:
        faces = FER2013(*[np.zeros(1)] * 4, form="zip", fingerprint=self.fingerprint, notes=(), standard=True)
        report = types.ModuleType("fer_utils.pipeline.page")
        report.build_report = lambda folder, facts: (folder / "provenance.json").write_text(json.dumps(facts))
        with ExitStack() as stack:
            stack.enter_context(patch.object(planning, "load_data", lambda path: print(f"loading {path}") or faces))
            stack.enter_context(patch.object(planning, "find_data", self.find_data))
            stack.enter_context(patch.dict(sys.modules, {"fer_utils.pipeline.page": report}))
            stack.enter_context(patch.object(shutil, "disk_usage", self.disk_usage))
            if not self.has_kernels:
                stack.enter_context(patch.object(runner, "run_notebook", run_without_kernel))
            return cli.main(argv, self.root, self.stages)

    def find_data(self, wanted: object) -> Path | None:
        return None if wanted == "sample" else self.root / "archive.zip"

    def disk_usage(self, folder: Path) -> types.SimpleNamespace:
        return types.SimpleNamespace(free=1e9 * self.free_gigabytes.get(folder.name, 9))

    def start(self, afterwards: str = "", argv: tuple[str, ...] = ()) -> subprocess.Popen:
        """A run in a process of its own, which then executes the code `afterwards`."""
        run = f"import test_pipeline as t; code = t.Project(t.Path({str(self.root)!r}), True).run(*{argv!r})"
        code = f"{run}\n{afterwards}\nt.sys.exit(code)"
        tests = Path(__file__).parent
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a shell starts with &
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def runs(self) -> list[str]:
        """The stages that have run, in order."""
        file = self.root / "runs.txt"
        return file.read_text().split() if file.exists() else []

    def published(self) -> dict[str, str]:
        """Every file that readers see -> its text."""
        files = [*(self.root / "reports").rglob("*"), *(self.root / "outputs").glob("*.ipynb")]
        return {path.relative_to(self.root).as_posix(): path.read_text() for path in files if path.is_file()}


def make_project(root: Path, has_kernels: bool = False) -> Project:
    """Two notebooks that have never run, and a small package that the second imports."""
    project = Project(root, has_kernels)
    project.write_notebook("01_count", cell(COUNT))
    project.write_notebook("02_train", cell(TRAIN), parameters="epochs = 1\nlr = 0.1\nseeds = [0]")
    package = root / "fer_utils"
    package.mkdir()
    for name, source in {"__init__": "", "helper": "from . import deeper", "deeper": "", "unused": ""}.items():
        (package / f"{name}.py").write_text(source)
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project that has never run."""
    return make_project(tmp_path / "Prüf {1} Ordner")


@pytest.fixture
def with_kernels(tmp_path: Path) -> Project:
    """A project that has never run, and that runs its notebooks in kernels."""
    return make_project(tmp_path / "Prüf {1} Ordner", has_kernels=True)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a project after its first run, and what the terminal showed."""
    project = make_project(tmp_path_factory.mktemp("first") / "Prüf {1} Ordner", has_kernels=True)
    terminal = io.StringIO()
    with redirect_stdout(terminal):
        assert project.run() == 0, terminal.getvalue()
    return project.root, terminal.getvalue()


@pytest.fixture
def finished(first_run: tuple[Path, str], tmp_path: Path) -> Project:
    """A copy of a project after its first run, to be spoiled."""
    shutil.copytree(first_run[0], tmp_path / "Prüf {2} Ordner")
    return Project(tmp_path / "Prüf {2} Ordner")


def plan_of(project: Project, capsys: pytest.CaptureFixture, *argv: str) -> dict[str, str]:
    """Stage -> "up to date", or why it would run."""
    capsys.readouterr()
    assert project.run("--dry-run", *argv) == 0
    plan = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  run"):
            stage, reasons = line.removeprefix("  run").strip().split(" (", 1)
            plan[stage] = reasons.split("): ", 1)[1]
        elif line.startswith("  up to date"):
            plan[line.split()[-1]] = "up to date"
    return plan


def edit_notebook(project: Project, name: str, change: Callable[[dict], None]) -> None:
    path = project.root / "notebooks" / f"{name}.ipynb"
    notebook = json.loads(path.read_text())
    change(notebook)
    path.write_text(json.dumps(notebook))


def record_of(project: Project, stage: str) -> freshness.Record:
    return freshness.read_record(project.root / f"reports/manifests/{stage}.json")


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


# --- A good run -------------------------------------------------------------------------------------------------------


def test_first_run_publishes_everything(first_run: tuple[Path, str]) -> None:
    root, terminal = first_run
    published = Project(root).published()
    assert set(published) == {
        *("reports/tables/01_count.csv", "reports/figures/01_count.csv", "reports/predictions/02_train.csv"),
        *("reports/manifests/01_count.json", "reports/manifests/02_train.json"),
        *("reports/provenance.json", "reports/report.json", "outputs/01_count.ipynb", "outputs/02_train.ipynb"),
    }
    assert published["reports/predictions/02_train.csv"] == "epochs 2 lr 0.1"
    assert (root / "outputs/checkpoints/02_train/last.txt").read_text() == "n\n1\n"
    assert not (root / "outputs/work/cpu/02_train").exists()
    assert "epoch  2/2  left 0 min" in (root / "outputs/work/cpu/02_train.log").read_text()
    assert "epoch" not in terminal
    assert f"Notebooks print to {root / 'outputs/work/cpu/NN_*.log'}\n" in terminal
    assert "[2/2] 02_train starts (" in terminal
    report, demo = terminal.splitlines()[-2:]
    assert report == f"Open the report:      {root / 'reports/report.html'}"
    assert demo.startswith("Start the demo:  ") and demo.endswith("run_demo.sh'")


def test_run_on_the_sample_says_how_to_bring_data(project: Project, capsys: pytest.CaptureFixture) -> None:
    assert project.run("--profile", "sample", "--only", "01") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("Bring your own data:  put Kaggle's archive.zip into ")


def test_published_notebooks_say_nothing_about_the_machine(first_run: tuple[Path, str]) -> None:
    root, _ = first_run
    for name in ("01_count", "02_train"):
        text = (root / "outputs" / f"{name}.ipynb").read_text()
        assert str(root) not in text
        assert str(root).encode("unicode_escape").decode() not in text
        notebook = json.loads(text)
        assert "papermill" not in notebook["metadata"]
        assert all(not {"papermill", "execution"} & set(cell["metadata"]) for cell in notebook["cells"])
    injected = next(cell for cell in notebook["cells"] if "injected-parameters" in cell["metadata"]["tags"])
    assert 'out = "outputs/work/cpu/02_train"' in "".join(injected["source"])
    assert 'data = "archive.zip"' in "".join(injected["source"])
    (printed,) = next(cell["outputs"] for cell in notebook["cells"] if cell.get("outputs"))
    assert "".join(printed["text"]).splitlines() == [
        "epoch  1/2  left 1 min outputs/work/cpu/02_train archive.zip",
        "epoch  2/2  left 0 min",
    ]


def test_widgets_neither_hang_nor_swallow_output_and_no_process_stays(with_kernels: Project) -> None:
    project = with_kernels
    panel = """
import os, subprocess, ipywidgets
for number in range(50):
    with ipywidgets.Output():
        print(number)
ipywidgets.interact(lambda x: print("panel", x), x=3)
write("tables/01_count.csv", os.environ["FER_HEADLESS"])
detached = subprocess.Popen(["sleep", "300"], start_new_session=True)
Path("../detached.pid").write_text(str(detached.pid))
"""
    project.stages = (replace(COUNTING, timeout_minutes=0.5),)
    project.write_notebook("01_count", cell(BEGIN), *[cell(panel)] * 3)
    assert project.run() == 0
    text = project.published()["outputs/01_count.ipynb"]
    assert "panel 3" in text
    assert "widget-view" not in text
    assert "widgets" not in json.loads(text)["metadata"]
    assert project.published()["reports/tables/01_count.csv"] == "1"
    pid = int((project.root / "detached.pid").read_text())
    assert not psutil.pid_exists(pid) or is_gone(psutil.Process(pid))


def test_provenance_has_every_stage(first_run: tuple[Path, str]) -> None:
    facts = json.loads((first_run[0] / "reports/provenance.json").read_text())
    assert set(facts["stages"]) == {"01_count", "02_train"}
    stage = facts["stages"]["02_train"]
    assert stage["parameters"] == {"epochs": 2}
    assert (stage["device"], stage["profile"]) == ("cpu", "cpu")
    assert stage["seconds"] > 0.5
    assert stage["peak_memory_mb"] > 20
    assert facts["data"] == {
        "form": "zip",
        "fingerprint": "f00d",
        "standard": True,
        "source": "archive.zip",
        "notes": [],
    }
    assert facts["versions"]["numpy"] == np.__version__


def test_large_pictures_of_an_executed_notebook_are_made_smaller(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8)
    pictures = []
    for side in (20, 200):
        png = io.BytesIO()
        Image.fromarray(noise[:side, :side]).save(png, "PNG")
        pictures.append(base64.b64encode(png.getvalue()).decode())
    outputs = [{"output_type": "display_data", "metadata": {}, "data": {"image/png": picture}} for picture in pictures]
    path = tmp_path / "executed.ipynb"
    path.write_text(json.dumps({"cells": [{"metadata": {}, "outputs": outputs}], "metadata": {}}))
    execution.clean_notebook(path, {})
    small, large = (output["data"] for output in json.loads(path.read_text())["cells"][0]["outputs"])
    assert small == {"image/png": pictures[0]} and len(large["image/jpeg"]) < len(pictures[1]) and len(large) == 1
    with Image.open(io.BytesIO(base64.b64decode(large["image/jpeg"]))) as image:
        assert image.size == (200, 200)


def test_commit_is_dirty_by_code_not_by_reports_docs_or_tests(tmp_path: Path) -> None:
    assert code_state(tmp_path) == {"commit": None, "dirty": None}
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "begin")
    for file in ("reports/summary.csv", "docs/results.md", "tests/test_report.py"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    state = code_state(tmp_path)
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "train.py").touch()
    assert code_state(tmp_path)["dirty"] is True


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """A git checkout, two commits long, with this project's way to name the commit in an archive."""
    origin = tmp_path / "origin"
    origin.mkdir()
    for name in (".git_archival.txt", ".gitattributes"):
        shutil.copy(PROJECT_ROOT / name, origin)
    git(origin, "init", "-q")
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "begin")
    (origin / "train.py").write_text("x = 1\n")
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "train")
    return origin


@pytest.mark.parametrize("inside_another", [False, True])
def test_archive_knows_its_commit(committed: Path, tmp_path: Path, inside_another: bool) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    if inside_another:  # a checkout of something else around it
        git(tmp_path, "init", "-q")
        git(tmp_path, "commit", "-q", "--allow-empty", "-m", "other")
    git(committed, "archive", "-o", str(tmp_path / "copy.zip"), "HEAD")
    shutil.unpack_archive(tmp_path / "copy.zip", copy)
    assert code_state(copy) == {"commit": git(committed, "rev-parse", "HEAD"), "dirty": None}


def test_copy_of_the_files_does_not_know_its_commit(committed: Path, tmp_path: Path) -> None:
    shutil.copytree(committed, tmp_path / "copy", ignore=shutil.ignore_patterns(".git"))
    assert "$Format:%H$" in (tmp_path / "copy/.git_archival.txt").read_text()
    assert code_state(tmp_path / "copy") == {"commit": None, "dirty": None}
    (tmp_path / "copy/.git_archival.txt").unlink()
    assert code_state(tmp_path / "copy") == {"commit": None, "dirty": None}


@pytest.mark.parametrize("kind", [("--depth", "1"), ("--filter", "blob:none")])
def test_shallow_or_partial_clone_knows_its_commit(committed: Path, tmp_path: Path, kind: tuple[str, str]) -> None:
    git(committed, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "-q", *kind, committed.as_uri(), "copy")
    shutil.move(committed, tmp_path / "unreachable")  # nothing more can be fetched
    state = {"commit": git(tmp_path / "unreachable", "rev-parse", "HEAD")}
    assert code_state(tmp_path / "copy") == state | {"dirty": False}
    git(tmp_path / "copy", "mv", "train.py", "fit.py")
    assert code_state(tmp_path / "copy") == state | {"dirty": True}


# --- What has to run again, and what has not --------------------------------------------------------------------------


def test_nothing_to_do_starts_nothing_and_loads_nothing_heavy(
    finished: Project, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    before = finished.published()
    process = finished.start("print(sorted({'torch', 'papermill', 'nbformat', 'pandas'} & set(t.sys.modules)))")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Nothing to do" in output
    assert output.splitlines()[-1] == "[]"
    assert finished.published() == before
    assert finished.runs() == ["01_count", "02_train"]


def test_opening_and_saving_a_notebook_changes_nothing(finished: Project, capsys: pytest.CaptureFixture) -> None:
    def save(notebook: dict) -> None:
        notebook["metadata"]["kernelspec"] = {"name": "other", "display_name": "Other"}
        notebook["cells"][0]["source"] = "# Another title"
        for number, code in enumerate(notebook["cells"][1:], start=1):
            code["execution_count"] = number
            code["metadata"]["collapsed"] = True
            code["source"] = code["source"].splitlines(keepends=True)
            code["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "hello"}]

    for name in ("01_count", "02_train"):
        edit_notebook(finished, name, save)
        executed = finished.root / "outputs" / f"{name}.ipynb"
        notebook = json.loads(executed.read_text())
        notebook["metadata"]["kernelspec"] = {"name": "other", "display_name": "Other"}
        executed.write_text(json.dumps(notebook))
    assert plan_of(finished, capsys) == {"01_count": "up to date", "02_train": "up to date"}


def append_to_code(name: str, number: int, text: str) -> Callable[[Project], None]:
    def change(notebook: dict) -> None:
        notebook["cells"][number]["source"] += text

    return lambda project: edit_notebook(project, name, change)


def append_to_file(name: str, text: str) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        with (project.root / name).open("a") as file:
            file.write(text)

    return change


def delete(name: str) -> Callable[[Project], None]:
    return lambda project: (project.root / name).unlink()


def change_output(project: Project) -> None:
    path = project.root / "outputs/02_train.ipynb"
    path.write_text(path.read_text().replace("left 1 min outputs", "left 9 min outputs"))


def change_manifest(project: Project, name: str, change: Callable[[dict], None]) -> None:
    path = project.root / f"reports/manifests/{name}.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def edit_manifest(project: Project) -> None:
    change_manifest(project, "02_train", lambda manifest: manifest["run"].update(seconds=1))


def forget_record(project: Project) -> None:
    change_manifest(project, "02_train", lambda manifest: [manifest.pop(key) for key in ("record", "run", "hash")])


def change_epochs(project: Project) -> None:
    project.stages = (COUNTING, replace(TRAINING, params={"cpu": {"epochs": 5}}))


def change_data(project: Project) -> None:
    project.fingerprint = "beef"


UP = "up to date"
RENEWED = "needs 01_count, which runs"


@pytest.mark.parametrize(
    ("spoil", "first", "second"),
    [
        (append_to_code("01_count", 2, "\nprint(1)"), "code cell 2 changed", RENEWED),
        (append_to_code("02_train", 1, "\nnew = 3"), UP, "code cell 1 changed"),
        (append_to_code("01_count", 2, "  # a remark"), UP, UP),
        (append_to_file("fer_utils/helper.py", "\n'A better sentence.'  # and a remark"), UP, UP),
        (append_to_file("fer_utils/helper.py", "\nnew = 1"), UP, "fer_utils/helper.py changed"),
        (append_to_file("fer_utils/deeper.py", "\nnew = 1"), UP, "fer_utils/deeper.py changed"),
        (append_to_file("fer_utils/unused.py", "\nnew = 1"), UP, UP),
        (append_to_file("reports/tables/01_count.csv", "2"), "reports/tables/01_count.csv was edited", RENEWED),
        (delete("reports/figures/01_count.csv"), "reports/figures/01_count.csv is missing", RENEWED),
        (delete("outputs/checkpoints/02_train/last.txt"), UP, UP),
        (
            append_to_file("outputs/checkpoints/02_train/last.txt", "2"),
            *(UP, "outputs/checkpoints/02_train/last.txt was edited"),
        ),
        (change_output, UP, "outputs/02_train.ipynb was edited"),
        (append_to_file("reports/manifests/02_train.json", "}"), UP, "its manifest is damaged"),
        (edit_manifest, UP, "its manifest was edited"),
        (forget_record, UP, "published before manifests recorded their run"),
        (delete("reports/manifests/02_train.json"), UP, "first run"),
        (change_epochs, UP, "parameter epochs 2 -> 5"),
        (change_data, "data zip f00d -> zip beef", "data zip f00d -> zip beef"),
    ],
)
def test_plan_gives_the_reason(
    finished: Project, capsys: pytest.CaptureFixture, spoil: Callable, first: str, second: str
) -> None:
    spoil(finished)
    plan = plan_of(finished, capsys)
    assert plan["01_count"] == first
    # an edited table is both: a reason for the stage that made it and a changed input for the one that reads it
    assert plan["02_train"].split(";")[0] in (second, f"needed file {first.split()[0]} changed")
    assert finished.runs() == ["01_count", "02_train"]


def test_votes_of_ferplus_count_where_they_are_read(finished: Project, capsys: pytest.CaptureFixture) -> None:
    finished.write_notebook("01_count", cell(COUNT + "\n# find_ferplus"))
    assert finished.run("--only", "01") == 0
    (finished.root / "fer2013new.csv").write_text("other votes")
    plan = plan_of(finished, capsys)
    assert re.fullmatch(r"data zip f00d.* -> zip f00d, FER\+ \w{8}.*", plan["01_count"]) and plan["02_train"] == RENEWED


def test_plan_names_three_of_many_changed_files() -> None:
    old = freshness.gather_dependencies([], {}, Path("none"), "data", "cpu", {f"{n}.csv": "before" for n in range(5)})
    new = old | {"inputs": {file: "after" for file in old["inputs"]}}
    assert freshness.describe_changes(old, new) == ["needed files 0.csv, 1.csv, 2.csv and 2 more changed"]


def test_stage_depends_on_the_files_that_it_reads_and_no_others(finished: Project) -> None:
    published = record_of(finished, "01_count").files
    read = record_of(finished, "02_train").depends["inputs"]
    assert list(read) == ["reports/tables/01_count.csv"] and len(published) > 1


def test_plan_follows_the_options(finished: Project, capsys: pytest.CaptureFixture) -> None:
    assert plan_of(finished, capsys, "--force", "--only", "2") == {"02_train": "forced"}
    assert plan_of(finished, capsys, "--from", "02", "--profile", "full") == {
        "02_train": "profile cpu -> full; parameter epochs 2 -> 9"
    }
    with patch.object(planning, "cuda_is_available", lambda: True):
        assert plan_of(finished, capsys, "--device", "auto") == {
            "01_count": "profile cpu -> full",
            "02_train": "profile cpu -> full; parameter epochs 2 -> 9",
        }
        same_profile = ("--device", "auto", "--profile", "cpu")
        assert plan_of(finished, capsys, *same_profile) == {"01_count": UP, "02_train": UP}
        assert plan_of(finished, capsys, *same_profile, "--force") == {"01_count": "forced", "02_train": "forced"}


def test_what_a_gpu_published_stands_where_there_is_none(finished: Project, capsys: pytest.CaptureFixture) -> None:
    assert finished.run("--profile", "full") == 0
    assert plan_of(finished, capsys) == {"01_count": UP, "02_train": UP}
    assert plan_of(finished, capsys, "--profile", "cpu")["02_train"] == "profile full -> cpu; parameter epochs 9 -> 2"
    append_to_code("02_train", 1, "\nnew = 3")(finished)
    reasons = "profile full -> cpu; parameter epochs 9 -> 2; code cell 1 changed"
    assert plan_of(finished, capsys) == {"01_count": UP, "02_train": reasons}


def test_damaged_output_is_made_again_and_only_that(finished: Project, capsys: pytest.CaptureFixture) -> None:
    finished.has_kernels = True  # so that the executed notebook is the same as well
    before = finished.published()
    (finished.root / "reports/tables/01_count.csv").write_text("edited")
    leftover = finished.root / "reports/tables/.01_count.csv.123.tmp"
    leftover.touch()
    assert finished.run() == 0
    assert finished.runs()[2:] == ["01_count"]
    assert "02_train is up to date after all" in capsys.readouterr().out
    assert not leftover.exists()
    after = finished.published()
    volatile = ("reports/provenance.json", "reports/report.json", "reports/manifests/01_count.json")
    assert after.keys() == before.keys()
    assert all(after[file] == before[file] for file in after if file not in volatile)


def test_files_that_are_no_longer_made_disappear(finished: Project) -> None:
    finished.write_notebook("01_count", cell(COUNT.replace("figures/01_count.csv", "figures/01_new.csv")))
    assert finished.run("--only", "01") == 0
    assert [path.name for path in (finished.root / "reports/figures").iterdir()] == ["01_new.csv"]


def test_files_that_came_with_a_clone_disappear_when_their_stage_runs(finished: Project) -> None:
    (finished.root / "reports/manifests/01_count.json").unlink()
    (finished.root / "reports/figures/01_before.png").touch()
    (finished.root / "reports/figures/10_other.png").touch()
    assert finished.run("--only", "01") == 0
    assert {path.name for path in (finished.root / "reports/figures").iterdir()} == {"01_count.csv", "10_other.png"}


def test_report_that_was_not_built_in_time_is_built_by_the_next_run(finished: Project) -> None:
    finished.write_notebook("01_count", cell(COUNT.replace("n\\n1", "n\\n2")))
    with patch.object(runner, "make_report", side_effect=KeyboardInterrupt):
        assert finished.run() == 130
    before = (finished.root / "reports/provenance.json").read_text()
    assert finished.run() == 0
    assert (finished.root / "reports/provenance.json").read_text() != before
    assert finished.runs()[2:] == ["01_count", "02_train"]


def test_report_is_built_after_every_notebook(project: Project) -> None:
    with patch.object(runner, "make_report") as make_report:
        assert project.run() == 0
    assert make_report.call_count == len(project.stages) + 1


def test_mistake_in_the_report_does_not_cost_the_notebooks_that_follow(project: Project) -> None:
    built = [TypeError("a mistake"), *[None] * len(project.stages)]
    with patch.object(runner, "make_report", side_effect=built):
        assert project.run() == 0
    assert project.runs() == ["01_count", "02_train"]


def test_report_that_cannot_be_built_is_said(finished: Project, capsys: pytest.CaptureFixture) -> None:
    (finished.root / "reports/provenance.json").unlink()
    with patch.object(runner, "make_report", side_effect=FileNotFoundError("no figures/03_losses.png")):
        assert finished.run() == 1
    assert "the report cannot be built: no figures/03_losses.png" in capsys.readouterr().out


def test_damaged_report_is_built_again(finished: Project) -> None:
    (finished.root / "reports/provenance.json").unlink()
    assert finished.run() == 0
    assert (finished.root / "reports/provenance.json").exists()
    assert finished.runs() == ["01_count", "02_train"]


def test_report_that_is_built_again_without_a_run_says_the_same(finished: Project) -> None:
    before = finished.published()
    (finished.root / "reports/report.json").write_text("{}")
    with patch.object(runner, "gather_provenance", side_effect=AssertionError("nothing has run")):
        assert finished.run() == 0
    assert finished.published() == before


# --- Another copy of the project, without checkpoints and data --------------------------------------------------------

LOOKING = Stage(
    "03_look", gives=("tables/03_look.csv",), minutes=MINUTES, needs={"02_train": ("checkpoints/last.txt",)}
)


@pytest.fixture
def clone(finished: Project) -> Project:
    """What a clone has of a project with three stages, the third of which reads a checkpoint of the second."""
    finished.stages = (*STAGES, LOOKING)
    finished.write_notebook("03_look", cell(BEGIN + "write('tables/03_look.csv', '1')"))
    assert finished.run() == 0
    for folder in ("checkpoints", "work"):
        shutil.rmtree(finished.root / "outputs" / folder)
    (finished.root / "runs.txt").unlink()
    return finished


def test_clone_knows_what_is_up_to_date(clone: Project, capsys: pytest.CaptureFixture) -> None:
    before = clone.published()
    assert plan_of(clone, capsys) == {"01_count": UP, "02_train": UP, "03_look": UP}
    assert plan_of(clone, capsys, "--only", "03") == {"03_look": UP}
    assert clone.run() == 0
    assert clone.main("--verify") == 0
    assert (clone.published(), clone.runs()) == (before, [])


def test_missing_checkpoint_is_made_when_a_stage_that_runs_needs_it(
    clone: Project, capsys: pytest.CaptureFixture
) -> None:
    append_to_code("03_look", 2, "\nprint(1)")(clone)
    reason = "03_look needs its outputs/checkpoints/02_train/last.txt, which is missing"
    assert plan_of(clone, capsys) == {"01_count": UP, "02_train": reason, "03_look": "code cell 2 changed"}
    assert clone.run("--only", "03") == 2
    message = "03_look needs outputs/checkpoints/02_train/last.txt of 02_train, which is missing; run that stage as"
    assert message in capsys.readouterr().err
    assert clone.run() == 0
    assert clone.runs() == ["02_train", "03_look"]
    assert set(plan_of(clone, capsys).values()) == {UP}


def test_manifest_records_the_run(first_run: tuple[Path, str]) -> None:
    record = record_of(Project(first_run[0]), "02_train")
    assert set(record.files) == {"reports/predictions/02_train.csv", "outputs/02_train.ipynb"}
    assert set(record.checkpoints) == {"outputs/checkpoints/02_train/last.txt"}
    assert record.depends["parameters"] == {"epochs": 2} and record.depends["data"] == "zip f00d"
    assert set(record.depends["modules"]) == {f"fer_utils/{name}.py" for name in ("__init__", "helper", "deeper")}
    assert record.run["started"] < record.run["finished"] and record.run["resumed"] is False
    assert {"python", "torch", "torchvision", "numpy", "fvcore", "scipy", "grad-cam"} <= set(record.run["versions"])
    assert {"commit", "dirty", "device", "device_name", "seconds", "peak_memory_mb"} <= set(record.run)


def test_small_derived_file_comes_with_the_clone(finished: Project, capsys: pytest.CaptureFixture) -> None:
    read = Stage("03_look", ("tables/03_look.csv",), MINUTES, needs={"02_train": ("checkpoints/landmarks.npz",)})
    finished.stages = (*STAGES, read)
    finished.write_notebook(
        "02_train",
        cell(TRAIN + "write('checkpoints/landmarks.npz', 'points')"),
        parameters="epochs = 1\nlr = 0.1\nseeds = [0]",
    )
    look = "from fer_utils.paths import find_artifact\npath = find_artifact(inputs, '02_train', 'landmarks.npz')"
    finished.write_notebook("03_look", cell(f"{BEGIN}\n{look}\nwrite('tables/03_look.csv', path.read_text())"))
    assert finished.run("--only", "01,02") == 0
    assert finished.published()["reports/derived/landmarks.npz"] == "points"
    shutil.rmtree(finished.root / "outputs/checkpoints")
    assert finished.run("--only", "03") == 0
    assert finished.published()["reports/tables/03_look.csv"] == "points"
    assert set(plan_of(finished, capsys).values()) == {UP}
    assert finished.main("--verify") == 0
    (finished.root / "reports/derived/landmarks.npz").unlink()
    assert plan_of(finished, capsys)["02_train"] == "reports/derived/landmarks.npz is missing"
    assert finished.run("--only", "03") == 2
    assert "03_look needs reports/derived/landmarks.npz of 02_train, which is missing" in capsys.readouterr().err


def test_derived_file_that_is_too_large_for_git(finished: Project, capsys: pytest.CaptureFixture) -> None:
    before = finished.published()
    finished.write_notebook("01_count", cell(COUNT), cell("write('checkpoints/landmarks.npz', 'x' * 2_100_000)"))
    assert finished.run("--only", "01") == 1
    assert (
        "01_count FAILED at its end: landmarks.npz has 2.1 MB, and the limit for files in git is 2 MB"
        in capsys.readouterr().out
    )
    assert finished.published() == before


# --- Checked and built without running anything -----------------------------------------------------------------------


def flip_one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    position = content.index(b"write(") if path.suffix == ".ipynb" else len(content) // 2
    content[position] ^= 1
    path.write_bytes(content)


def test_verify_finds_one_flipped_byte_in_any_published_file(finished: Project, capsys: pytest.CaptureFixture) -> None:
    assert finished.main("--verify") == 0
    assert capsys.readouterr().out == "All files of 2 manifests match their records.\n"
    for file in finished.published():
        before = (finished.root / file).read_bytes()
        flip_one_byte(finished.root / file)
        assert finished.main("--verify") == 1
        output = capsys.readouterr().out
        assert (Path(file).stem if "manifests" in file else file) in output or file == "reports/report.json", output
        (finished.root / file).write_bytes(before)
    assert finished.main("--verify") == 0
    assert finished.runs() == ["01_count", "02_train"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (delete("reports/figures/01_count.csv"), "reports/figures/01_count.csv is missing"),
        (append_to_file("reports/tables/99_new.csv", "x"), "reports/tables/99_new.csv is not recorded by any run"),
        (append_to_file("outputs/99_new.ipynb", "x"), "outputs/99_new.ipynb is not recorded by any run"),
        (forget_record, "02_train cannot be checked: published before manifests recorded their run"),
        (edit_manifest, "02_train cannot be checked: its manifest was edited"),
        (delete("reports/manifests/02_train.json"), "outputs/02_train.ipynb is not recorded by any run"),
        (delete("reports/report.json"), "the report cannot be checked: it was built before its files were recorded"),
        (
            append_to_file("outputs/checkpoints/02_train/last.txt", "x"),
            "outputs/checkpoints/02_train/last.txt was edited",
        ),
    ],
)
def test_verify_says_what_does_not_come_from_a_run(
    finished: Project, capsys: pytest.CaptureFixture, spoil: Callable, message: str
) -> None:
    spoil(finished)
    assert finished.main("--verify") == 1
    assert message in capsys.readouterr().out


def test_verify_where_nothing_is_published(project: Project, capsys: pytest.CaptureFixture) -> None:
    assert project.main("--verify") == 1
    assert capsys.readouterr().out.startswith(f"nothing is published in {project.root / 'reports'}")
    assert project.main("--report") == 2
    assert "run ./run_all.sh first" in capsys.readouterr().err


def test_report_is_built_from_what_is_published(finished: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "find_data", lambda wanted: pytest.fail("it looks for data"))
    before = finished.published()
    assert finished.main("--report") == 0
    assert finished.published() == before
    (finished.root / "reports/provenance.json").unlink()
    assert finished.main("--report") == 0
    assert set(json.loads(finished.published()["reports/provenance.json"])["stages"]) == {"01_count", "02_train"}
    assert finished.main("--verify") == 0


def test_report_keeps_what_is_known_of_stages_without_a_record(finished: Project) -> None:
    forget_record(finished)
    assert finished.main("--report") == 0
    assert set(json.loads(finished.published()["reports/provenance.json"])["stages"]) == {"01_count", "02_train"}


def test_report_that_cannot_be_built_leaves_the_earlier_one(finished: Project, capsys: pytest.CaptureFixture) -> None:
    before = finished.published()
    with patch.object(cli, "make_report", side_effect=ValueError("a manifest is damaged")):
        assert finished.main("--report") == 1
    assert capsys.readouterr().err == "run_all.sh: the report cannot be built: a manifest is damaged\n"
    assert finished.published() == before


@pytest.mark.parametrize("option", ["--report", "--verify"])
@pytest.mark.parametrize(
    ("others", "named"),
    [
        (["--force"], "--force"),
        (["--only", "01"], "--only"),
        (["--from", "01"], "--from"),
        (["--data", "sample"], "--data"),
        (["--dry-run"], "--dry-run"),
        (["--list"], "--list"),
        (["-p", "epochs=1"], "--parameter"),
    ],
)
def test_report_and_verify_refuse_options_of_a_run(
    finished: Project, capsys: pytest.CaptureFixture, option: str, others: list[str], named: str
) -> None:
    assert finished.main(option, *others) == 2
    sentence = f"{option} only works on published results and runs nothing; leave out {named}"
    assert capsys.readouterr().err == f"run_all.sh: {sentence}\n"


# --- Refused before anything starts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-p", "epoch=5"], "no notebook of this run has a parameter epoch; did you mean epochs?"),
        (["-p", "epochs=5", "--only", "01"], "no notebook of this run has a parameter epochs"),
        (["-p", "epochs=abc"], "epochs must be a whole number like 1"),
        (["-p", "epochs=1e3"], "epochs must be a whole number like 1"),
        (["-p", "epochs=0"], "epochs must be 1 or more, not 0"),
        (["-p", "lr=abc"], "lr must be a number like 0.1"),
        (["-p", "lr=-0.1"], "lr must be a number above 0"),
        (["-p", "lr=1e999"], "lr must be a number above 0"),
        (["-p", "seeds=1"], "seeds must be a value like [0]"),
        (["-p", "seeds=[]"], "at least one seed"),
        (["-p", "seeds=[0,0]"], "seeds must differ from each other, not [0, 0]"),
        (["-p", "epochs"], "write it as NAME=VALUE"),
        (["-p", "out=elsewhere"], "-p out: use the options --data, --rafdb, --profile and --device"),
        (["--only", ""], "there is no stage ''; the stages are 01_count, 02_train"),
        (["--dry-run", "--download"], "--dry-run does not download anything; leave out --download or --dry-run"),
        (["--only", "7"], "there is no stage '7'; the stages are 01_count, 02_train"),
        (
            ["--only", "2"],
            "02_train needs reports/tables/01_*.csv of 01_count, which is missing; run that stage as well",
        ),
        (["--profile", "sample", "--data", "archive.zip"], "--profile sample always uses the embedded sample"),
        (["--rafdb", "basic"], "no notebook of this run uses RAF-DB; only 11_local_global does"),
        (["-p", "rafdb=basic"], "-p rafdb: use the options --data, --rafdb"),
    ],
)
def test_bad_usage(project: Project, capsys: pytest.CaptureFixture, argv: list[str], message: str) -> None:
    assert project.run(*argv) == 2
    assert message in capsys.readouterr().err
    assert project.runs() == []
    assert project.published() == {}


@pytest.mark.parametrize(
    "argv",
    [
        *(["--profile", "huge"], ["--onyl", "01"], ["--only", "01", "--from", "02"], ["--report", "--verify"]),
        *(["--data", ""], ["--rafdb", " "]),
    ],
)
def test_unknown_options(project: Project, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        project.run(*argv)
    assert stopped.value.code == 2


def test_cuda_that_is_not_there(project: Project, capsys: pytest.CaptureFixture) -> None:
    with patch.object(planning, "cuda_is_available", lambda: False):
        assert project.run("--device", "cuda") == 2
        assert "finds no CUDA GPU" in capsys.readouterr().err
        assert project.run("--device", "auto", "--dry-run") == 0
        assert "Device: cpu" in capsys.readouterr().out


def test_real_data_is_never_replaced_by_the_sample() -> None:
    for profile in ("cpu", "full"):
        with pytest.raises(UsageError, match="needs FER2013, and none was found; download"):
            planning.choose_profile(profile, None, "cpu")
    assert planning.choose_profile(None, None, "cuda") == "sample"
    assert planning.choose_profile(None, Path("archive.zip"), "cpu") == "cpu"


def test_profile_sample_leaves_real_data_alone(project: Project, capsys: pytest.CaptureFixture) -> None:
    assert project.run("--dry-run", "--profile", "sample") == 0
    output = capsys.readouterr().out
    assert "loading sample" in output
    assert "Data: embedded sample. Profile: sample." in output
    assert str(project.root / "outputs/sample/reports") in output


def test_download_that_fails(project: Project, capsys: pytest.CaptureFixture) -> None:
    with patch.object(planning, "download_fer2013", side_effect=DataError("no network; get it by hand")):
        assert project.run("--download") == 2
    assert capsys.readouterr().err == "run_all.sh: no network; get it by hand\n"


def test_data_path_is_taken_from_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert planning.choose_data(cli.parse_options(["--data", "my/archive.zip"])) == tmp_path / "my/archive.zip"


def test_values_are_typed_like_the_default() -> None:
    assert parse_value("lr", "1e-3", 0.1) == 0.001
    assert repr(parse_value("lr", "1", 0.1)) == "1.0"
    assert parse_value("flag", "false", True) is False
    assert parse_value("seeds", "0,1", [0]) == [0, 1]
    assert parse_value("name", "3", "lenet") == "3"
    assert parse_value("limit", "3", None) == 3
    for name, text, default in [("flag", "1", True), ("seeds", "['a']", [0]), ("epochs", "True", 1)]:
        with pytest.raises(UsageError, match=name):
            parse_value(name, text, default)
    with pytest.raises(UsageError, match="batch_size must be 1 or more"):
        check_value("batch_size", -4)


def test_parameters_cell_with_more_than_literals() -> None:
    assert read_parameters([CodeCell("# comment\nlr = -1e-3", ("parameters",))]) == {"lr": -1e-3}
    for source in ("import os", "x = os.cpu_count()", "x = (", "x: int = 1"):
        with pytest.raises(UsageError, match="may only assign literals"):
            read_parameters([CodeCell(source, ("parameters",))])


def test_override_goes_to_the_notebooks_that_declare_it() -> None:
    declared = {"01": {"bins": 3}, "04": {"bins": 5, "lr": 0.1}}
    assert assign_overrides(["lr=2.0", "bins=4"], declared) == {"01": {"bins": 4}, "04": {"lr": 2.0, "bins": 4}}


def test_stage_with_a_parameter_that_its_notebook_lacks(project: Project, capsys: pytest.CaptureFixture) -> None:
    project.stages = (replace(COUNTING, params={"cpu": {"epochs": 2}}),)
    assert project.run() == 2
    assert "parameter epochs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is missing"), ("<html>", "is not a valid notebook"), ("{}", "is not a valid notebook")],
)
def test_notebook_that_cannot_be_read(
    project: Project, capsys: pytest.CaptureFixture, content: str | None, message: str
) -> None:
    path = project.root / "notebooks/02_train.ipynb"
    path.write_text(content) if content else path.unlink()
    assert project.run() == 2
    assert message in capsys.readouterr().err


def test_folder_that_cannot_be_written(finished: Project, capsys: pytest.CaptureFixture) -> None:
    before = finished.published()

    def refuse(dir: Path) -> None:
        if dir.name == "figures":
            raise OSError(errno.EROFS, "Read-only file system")

    with patch.object(tempfile, "TemporaryFile", lambda dir: refuse(dir) or io.StringIO()):
        assert finished.run("--force") == 2
    error = capsys.readouterr().err
    assert f"cannot write to {finished.root}/reports/figures (Read-only file system)" in error
    assert (finished.published(), len(finished.runs())) == (before, 2)


@pytest.mark.parametrize(
    ("profile", "full", "free", "needed"),
    [("cpu", "outputs", 3.9, 4), ("cpu", "reports", 0, 0.1), ("sample", "sample", 0.9, 1)],
)
def test_full_disk(
    finished: Project, capsys: pytest.CaptureFixture, profile: str, full: str, free: float, needed: float
) -> None:
    finished.free_gigabytes[full] = free
    assert finished.run("--force", "--profile", profile) == 2
    error = capsys.readouterr().err
    assert f"only {free:.1f} GB of disk space are free at" in error
    assert f"/{full}; a run needs {needed} GB there" in error
    assert len(finished.runs()) == 2


def test_sample_needs_less_room(finished: Project) -> None:
    finished.free_gigabytes = {"sample": 1.1, "outputs": 1.1}
    assert finished.run("--force", "--profile", "sample") == 0


def test_kernel_of_another_python(
    project: Project, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project.root / "jupyter/kernels/python3"
    folder.mkdir(parents=True)
    spec = {"argv": ["/opt/other/bin/python", "-m", "ipykernel_launcher"], "display_name": "P", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(project.root / "jupyter"))
    assert project.run() == 2
    error = capsys.readouterr().err
    assert "belongs to another Python" in error
    assert "/opt/other/bin/python" in error
    spec["argv"][0] = sys.executable
    (folder / "kernel.json").write_text(json.dumps(spec))
    execution.check_kernel()


def test_no_kernel(project: Project, capsys: pytest.CaptureFixture) -> None:
    with patch("importlib.util.find_spec", lambda name: None):
        assert project.run() == 2
    assert "has no ipykernel; run:" in capsys.readouterr().err
    assert project.runs() == []


def test_lock_file_of_a_dead_run_is_no_obstacle(finished: Project) -> None:
    for name in ("lock", "pid"):
        (finished.root / "outputs/work" / name).write_text("999999")
    assert finished.run() == 0
    assert (finished.root / "outputs/work/pid").read_text() == str(os.getpid())


@pytest.mark.parametrize("content", ["mine", None])
def test_link_in_place_of_the_lock_is_not_followed(tmp_path: Path, content: str | None) -> None:
    target, lock = tmp_path / "target", tmp_path / "outputs/work/lock"
    lock.parent.mkdir(parents=True)
    lock.symlink_to(target)
    if content:
        target.write_text(content)
    with pytest.raises(UsageError, match="lock is a link; delete it"), project_lock(tmp_path):
        pass
    assert (target.read_text() if target.exists() else None) == content


def test_link_in_place_of_the_pid_is_replaced(tmp_path: Path) -> None:
    target, pid = tmp_path / "target", tmp_path / "outputs/work/pid"
    pid.parent.mkdir(parents=True)
    pid.symlink_to(target)
    with project_lock(tmp_path):
        assert pid.read_text() == str(os.getpid())
    assert not target.exists() and not pid.is_symlink()


# --- Notebooks that do not reach their end ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "tags", "message"),
    [
        ("1 / 0", (), "code cell 4 (first line: '1 / 0'): ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(0)", (), "code cell 4 (first line: 'import sys; sys.exit(0)'): SystemExit: 0"),
        ("x = 1", ("skip-execution",), "code cell 4 (first line: 'x = 1'): it was not executed"),
        ("import os; os._exit(0)", (), "code cell 4 (first line: 'import os; os._exit(0)'): the kernel died"),
        (
            *("import time; time.sleep(60)", ()),
            "code cell 4 (first line: 'import time; time.sleep(60)'): it ran longer than 0.05 minutes",
        ),
        ("(out / 'tables/01_count.csv').write_text('')", (), "its end: it did not write tables/01_count.csv"),
    ],
    ids=["error", "sys.exit", "skipped", "dead kernel", "hung", "output missing"],
)
def test_failed_notebook_is_named_and_publishes_nothing(
    finished: Project, capsys: pytest.CaptureFixture, source: str, tags: tuple[str, ...], message: str
) -> None:
    finished.has_kernels = not message.startswith("its end")
    before, children = finished.published(), set(psutil.Process().children(recursive=True))
    finished.stages = (replace(COUNTING, timeout_minutes=0.05), TRAINING)
    finished.write_notebook("01_count", cell(COUNT), cell(""), cell("y = 2"), cell(source, tags))
    assert finished.run() == 1
    output = capsys.readouterr().out
    assert f"01_count FAILED at {message}" in output
    assert f"its log: {finished.root / 'outputs/work/cpu/01_count.log'}" in output
    assert "02_train is skipped: it needs 01_count" in output
    assert finished.runs()[2:] == ["01_count"]
    assert finished.published().keys() == before.keys()
    assert finished.published() == before
    assert (finished.root / "outputs/work/cpu/01_count/notebook.ipynb").exists()
    assert set(psutil.Process().children(recursive=True)) <= children


def test_stage_whose_needed_files_are_gone_is_refused(finished: Project, capsys: pytest.CaptureFixture) -> None:
    shutil.copy(finished.root / "reports/tables/01_count.csv", finished.root / "reports/tables/01_other.csv")
    (finished.root / "reports/tables/01_count.csv").unlink()
    assert finished.run("--only", "02", "--force") == 2
    message = "02_train needs reports/tables/01_count.csv of 01_count, which is missing; run that stage"
    assert message in capsys.readouterr().err


def test_stage_runs_on_results_that_came_with_the_project(finished: Project, capsys: pytest.CaptureFixture) -> None:
    """As in a fresh clone: the files in reports/ are there, but nothing was run here; others than it reads may lack."""
    shutil.rmtree(finished.root / "outputs")
    (finished.root / "reports/figures/01_count.csv").unlink()
    assert finished.run("--only", "02") == 0
    assert "Uses published results of: 01_count\n" in capsys.readouterr().out
    assert finished.runs()[2:] == ["02_train"]
    assert plan_of(finished, capsys, "--only", "02") == {"02_train": UP}
    (finished.root / "reports/tables/01_count.csv").write_text("n\n2\n")
    assert plan_of(finished, capsys, "--only", "02") == {"02_train": "needed file reports/tables/01_count.csv changed"}


def test_notebook_that_is_changed_during_the_run_is_not_run(finished: Project, capsys: pytest.CaptureFixture) -> None:
    change = "later = Path('02_train.ipynb'); later.write_text(later.read_text().replace('0.1', '0.2'))"
    finished.write_notebook("01_count", cell(COUNT), cell(change))
    assert finished.run("--force") == 1
    assert "02_train FAILED at its start: the notebook was changed since this run" in capsys.readouterr().out
    assert finished.runs()[2:] == ["01_count"]


def test_stages_that_do_not_need_the_failed_one_go_on(project: Project, capsys: pytest.CaptureFixture) -> None:
    project.stages = (COUNTING, replace(TRAINING, needs={}))
    project.write_notebook("01_count", cell(BEGIN))  # it writes no table
    project.write_notebook("02_train", cell(BEGIN + "write('predictions/02_train.csv', 'x')"), parameters="epochs = 1")
    assert project.run() == 1
    assert "FAILED or skipped: 01_count." in capsys.readouterr().out
    assert "reports/predictions/02_train.csv" in project.published()
    assert set(json.loads(project.published()["reports/provenance.json"])["stages"]) == {"02_train"}
    assert plan_of(project, capsys) == {
        "01_count": "did not finish last time",
        "02_train": UP,
    }


# --- Stopped in the middle --------------------------------------------------------------------------------------------

SLOW = (
    BEGIN
    + """
import os, time
epoch = out / "training/epoch.txt"
if not epoch.exists():
    write("training/epoch.txt", "1")
    write("tables/01_count.csv", "half")
    Path("../kernel.pid").write_text(str(os.getpid()))
    time.sleep(300)
write("tables/01_count.csv", "after epoch " + epoch.read_text())
"""
)


@pytest.fixture
def slow(finished: Project) -> Iterator[tuple[Project, subprocess.Popen, psutil.Process]]:
    """A project, its run in another process, and the kernel of that run, asleep in the middle of 01_count."""
    finished.write_notebook("01_count", cell(SLOW))
    process = finished.start()
    pid = finished.root / "kernel.pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    kernel = psutil.Process(int(pid.read_text()))
    yield finished, process, kernel
    for each in (process, kernel):
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.communicate()


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_killed_run_goes_on_at_its_stage(slow: tuple, capsys: pytest.CaptureFixture) -> None:
    project, process, kernel = slow
    before = project.published()
    process.kill()
    process.wait()
    wait_for(lambda: is_gone(kernel), seconds=20)
    assert project.published() == before
    assert plan_of(project, capsys)["01_count"].endswith("; resumes its training")
    assert project.run("--only", "01") == 0
    assert project.runs()[2:] == ["01_count", "01_count"]
    assert project.published()["reports/tables/01_count.csv"] == "after epoch 1"


def test_run_that_is_terminated_twice_ends_quietly_and_goes_on_when_forced(
    slow: tuple, capsys: pytest.CaptureFixture
) -> None:
    project, process, kernel = slow
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: is_gone(kernel) or process.poll() is not None or process.send_signal(signal.SIGTERM))
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "Interrupted." in output and "Traceback" not in output, output
    assert is_gone(kernel)
    [seconds] = project.root.rglob("training/seconds")
    assert 0 < float(seconds.read_text()) < 60
    seconds.write_text("3600.0")  # as if it had run for an hour
    [start_file] = project.root.rglob("01_count/start.json")
    depends = json.loads(start_file.read_text())
    depends.pop("device")
    record = record_of(project, "01_count")  # as if this very code had been published before
    freshness.write_manifest(
        *(project.root / "reports/manifests/01_count.json", {}),
        {"depends": depends, "files": record.files, "checkpoints": record.checkpoints},
        record.run,
    )
    assert plan_of(project, capsys)["01_count"] == "did not finish when it was forced; resumes its training"
    assert project.run("--only", "01", "--force") == 0
    assert project.published()["reports/tables/01_count.csv"] == "after epoch 1"
    assert plan_of(project, capsys)["01_count"] == UP
    assert 3600 <= record_of(project, "01_count").run["seconds"] < 3660


def test_interrupted_run(slow: tuple, capsys: pytest.CaptureFixture) -> None:
    project, process, kernel = slow
    before = project.published()
    assert project.run() == 2
    assert f"another run is in progress here (pid {process.pid})" in capsys.readouterr().err
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert "Interrupted." in output
    assert "Traceback" not in output
    assert is_gone(kernel)
    assert project.published() == before
    with project_lock(project.root):
        pass


@pytest.mark.parametrize("number", cli.STOP_SIGNALS)
def test_only_the_first_signal_stops_the_run(number: int) -> None:
    earlier = [signal.getsignal(each) for each in cli.STOP_SIGNALS]
    try:
        with pytest.raises(KeyboardInterrupt), cli.stop_once():
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(signal.SIGTERM)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as with nohup
        with cli.stop_once():
            signal.raise_signal(signal.SIGHUP)
    finally:
        for each, handler in zip(cli.STOP_SIGNALS, earlier, strict=True):
            signal.signal(each, handler)


def test_output_that_nobody_reads_ends_the_program_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "fer_utils.pipeline", "--list"]
    process = subprocess.run(command, cwd=PROJECT_ROOT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, b"")


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("survivors", [0, 1])
def test_kill_while_publishing_leaves_old_or_new_files(
    finished: Project, capsys: pytest.CaptureFixture, survivors: int
) -> None:
    old = finished.published()
    finished.write_notebook("01_count", cell(COUNT.replace("n\\n1", "n\\n2")))
    replaced: list[Path] = []
    real_replace = Path.replace

    def replace_or_die(source: Path, target: Path) -> None:
        if "reports" in target.parts:
            if len(replaced) == survivors:
                raise Killed
            replaced.append(target)
        real_replace(source, target)

    with patch.object(Path, "replace", replace_or_die), pytest.raises(Killed):
        finished.run()
    now = [finished.published()[f"reports/{part}/01_count.csv"] for part in ("figures", "tables")]
    assert sorted(now) == ["n\n1\n"] * (2 - survivors) + ["n\n2\n"] * survivors
    assert finished.published().keys() == old.keys()
    assert "code cell 2 changed" in plan_of(finished, capsys)["01_count"]


def test_notebook_that_papermill_cannot_write(with_kernels: Project, capsys: pytest.CaptureFixture) -> None:
    def write_half(notebook: dict, path: str) -> None:
        Path(path).write_text('{"cells": [')
        raise OSError(errno.ENOSPC, "No space left on device")

    with patch("papermill.engines.write_ipynb", write_half):
        assert with_kernels.run("--only", "01") == 1
    output = capsys.readouterr().out
    assert "01_count FAILED at an unknown cell: papermill stopped with OSError: [Errno 28] No space left" in output


def test_disk_that_is_full_during_a_run_is_said_in_one_sentence(
    finished: Project, capsys: pytest.CaptureFixture
) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    with patch.object(runner.Console, "print_line", side_effect=error):
        assert finished.run("--force") == 1
    assert capsys.readouterr().err.startswith("run_all.sh: the run stopped: [Errno 28] No space left on device. ")
    with patch.object(runner, "open_log", side_effect=error):
        assert finished.run("--force", "--only", "01") == 1
    assert "01_count FAILED at [Errno 28] No space left on device\n" in capsys.readouterr().out
    with patch("fer_utils.pipeline.lock.atomic_write", side_effect=error):
        assert finished.run() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_publishing_that_fails_is_a_failed_stage(finished: Project, capsys: pytest.CaptureFixture) -> None:
    with patch.object(publish, "atomic_write", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        assert finished.run("--force", "--only", "01") == 1
    assert "cannot be published ([Errno 28] No space left on device)" in capsys.readouterr().out


def test_training_of_other_code_is_not_resumed(tmp_path: Path) -> None:
    checkpoint, other = tmp_path / "training/last.pt", tmp_path / "tables/old.csv"

    def prepare(depends: dict) -> bool:
        for path in (checkpoint, other):
            path.parent.mkdir(exist_ok=True)
            path.touch()
        runner.prepare_staging(tmp_path, depends)
        assert not other.exists()
        return checkpoint.exists()

    assert not prepare({"epochs": 1})
    assert prepare({"epochs": 1})
    assert not prepare({"epochs": 2})


# --- RAF-DB in place of the data, for the notebooks that know it ------------------------------------------------------


@pytest.fixture
def knows_rafdb(finished: Project) -> Project:
    """A finished project whose second notebook has a parameter for RAF-DB and prints what it gets."""
    code = TRAIN + "print('RAF-DB at', rafdb)"
    finished.write_notebook("02_train", cell(code), parameters='epochs = 1\nlr = 0.1\nseeds = [0]\nrafdb = ""')
    assert finished.run() == 0
    return finished


def test_rafdb_goes_to_the_notebook_that_knows_it(
    knows_rafdb: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (knows_rafdb.root / "mine").mkdir()
    monkeypatch.chdir(knows_rafdb.root / "mine")
    read = []
    faces = FER2013(*[np.zeros(1)] * 4, form="rafdb", fingerprint="cafe", notes=(), standard=True)
    monkeypatch.setattr(planning, "load_rafdb", lambda path: read.append(path) or faces)
    plan = plan_of(knows_rafdb, capsys, "--rafdb", "basic")
    assert plan == {"01_count": "up to date", "02_train": "data zip f00d -> zip f00d, rafdb cafe"}
    assert knows_rafdb.run("--rafdb", "basic") == 0
    assert "RAF-DB is used by: 02_train" in capsys.readouterr().out
    assert set(read) == {str(knows_rafdb.root / "mine" / "basic")}
    log = (knows_rafdb.root / "outputs/work/cpu/02_train.log").read_text()
    assert f"RAF-DB at {knows_rafdb.root / 'mine' / 'basic'}" in log
    stages = json.loads((knows_rafdb.root / "reports/provenance.json").read_text())["stages"]
    assert [stages[name]["data"] for name in ("01_count", "02_train")] == ["zip f00d", "zip f00d, rafdb cafe"]
    assert set(plan_of(knows_rafdb, capsys, "--rafdb", "basic").values()) == {"up to date"}
    assert plan_of(knows_rafdb, capsys)["02_train"] == "data zip f00d, rafdb cafe -> zip f00d"


def test_rafdb_that_is_not_there(knows_rafdb: Project, capsys: pytest.CaptureFixture) -> None:
    assert knows_rafdb.run("--rafdb", str(knows_rafdb.root / "nowhere")) == 2
    assert "nowhere' does not exist" in capsys.readouterr().err


# --- Runs that must not touch the report ------------------------------------------------------------------------------


def test_parameters_set_by_hand_stay_out_of_the_report(finished: Project) -> None:
    before = finished.published()
    assert finished.run("--only", "02", "-p", "epochs=7", "-p", "lr=1e-3") == 0
    assert finished.published() == before
    custom = finished.root / "outputs/custom"
    assert (custom / "reports/predictions/02_train.csv").read_text() == "epochs 7 lr 0.001"
    assert (custom / "02_train.ipynb").exists()


def test_sample_run_stays_out_of_the_report(project: Project) -> None:
    for custom, kind in ((False, "sample"), (True, "custom")):
        folders = publish.Folders.of(project.root, "sample", custom)
        assert folders.outputs == project.root / "outputs" / kind
        assert folders.reports == folders.outputs / "reports"


def test_list_names_all_stages(project: Project, capsys: pytest.CaptureFixture) -> None:
    assert project.run("--list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["stage", "01_count", "02_train"]
