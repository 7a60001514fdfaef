"""Every published run that evaluated test stays on record."""

import re

import pandas as pd

from fer_utils.paths import PROJECT_ROOT
from fer_utils.pipeline.openings import COLUMNS, FILE, append_openings, read_openings

RUN = {"finished": "2026-01-02T03:04:05+00:00", "commit": "0123456789abcdef"}


def row(split="test", model="a", epochs=7, accuracy=0.5, profile="cpu"):
    return {
        "notebook": "06_x", "profile": profile, "device": "CPU", "model": model, "split": split, "n": 3589, "seeds": 1,
        "epochs": epochs, "accuracy": accuracy, "accuracy_no_duplicates": accuracy - 0.01,
    }  # fmt: skip


def test_rows_are_added_and_never_replaced(tmp_path):
    path = tmp_path / FILE
    append_openings(path, [row(), row("val"), row(model="b")], RUN)
    append_openings(path, [row(accuracy=0.6), row(model="b")], {})
    rows = read_openings(path)
    assert [(r["model"], r["accuracy"], r["changed"]) for r in rows] == [
        ("a", "0.5", "first published run"),
        ("b", "0.5", "first published run"),
        ("a", "0.6", "code or inputs"),
        ("b", "0.5", "same result"),
    ]
    assert rows[0]["commit"] == "0123456789" and rows[0]["finished"] == RUN["finished"] and rows[2]["finished"] == ""


def test_what_the_rows_show_to_have_changed_is_named(tmp_path):
    path = tmp_path / FILE
    append_openings(path, [row()], RUN)
    append_openings(path, [row(epochs=11, accuracy=0.57), row(epochs=60, accuracy=0.66, profile="full")], RUN)
    assert [r["changed"] for r in read_openings(path)[1:]] == ["epochs 7 -> 11", "first published run"]


def test_what_a_row_does_not_have_stays_empty(tmp_path):
    append_openings(tmp_path / FILE, [row(epochs=float("nan"))], RUN)
    assert read_openings(tmp_path / FILE)[0]["epochs"] == ""


def test_a_run_without_test_results_leaves_no_file(tmp_path):
    append_openings(tmp_path / FILE, [row("val")], RUN)
    assert not (tmp_path / FILE).exists()


def test_the_published_list_has_every_published_model():
    listed = pd.read_csv(PROJECT_ROOT / "reports" / FILE)
    assert tuple(listed.columns) == COLUMNS
    summary = pd.read_csv(PROJECT_ROOT / "reports" / "summary.csv").query("split == 'test'")
    last = listed.groupby(["notebook", "model"]).accuracy.last()
    for model in summary.itertuples():
        assert last[model.notebook, model.model] == model.accuracy


def test_the_history_in_06_is_the_listed_one():
    text = (PROJECT_ROOT / "notebooks" / "06_efficientnet_ablation.ipynb").read_text(encoding="utf-8")
    header = re.search(r"published \| epochs \| ([\w |]+) \|", text)[1].split(" | ")
    lines = re.findall(r"\| (2026-\d\d-\d\d) \| (\d+) \| ([\d. |-]+) \|", text)
    listed = pd.read_csv(PROJECT_ROOT / "reports" / FILE).query("notebook == '06_efficientnet_ablation'")
    listed = listed[listed.profile == "cpu"].assign(date=listed.finished.str[:10])
    assert [date for date, *_ in lines] == sorted(set(listed.date)) and header[:2] == ["none", "crp"]
    for date, epochs, values in lines:
        run = listed[listed.date == date].set_index("model")
        assert set(run.epochs) == {float(epochs)}
        accuracy = 100 * run.accuracy.reindex([f"efficientnet_{version}" for version in header])
        assert values.split(" | ") == ["-" if pd.isna(value) else f"{value:.1f}" for value in accuracy]
