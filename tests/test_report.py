"""Reports: what is shown, what is written, and that all of it agrees."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from helpers import tiny_faces

from fer_utils import report as report_module
from fer_utils.paths import PROJECT_ROOT
from fer_utils.pipeline.code_hash import normalize_cell
from fer_utils.pipeline.freshness import GENERATED_PAGES, hash_content
from fer_utils.pipeline.page import build_report
from fer_utils.pipeline.page.chart import spread
from fer_utils.pipeline.page.front import make_cards, make_headline, tell_finding
from fer_utils.pipeline.page.html import markdown_to_html, to_html
from fer_utils.pipeline.page.names import readable_name, readable_table, readable_text, readable_title
from fer_utils.pipeline.page.pictures import encode_picture
from fer_utils.pipeline.page.story import (
    FINDINGS,
    MAIN_CLAIMS,
    SAMPLE_BANNER,
    SAMPLE_TITLE,
    TELLING_FIGURES,
    TITLE,
)
from fer_utils.pipeline.page.tables import (
    CLAIMS_BEGIN,
    CLAIMS_END,
    RESULTS_BEGIN,
    RESULTS_END,
    TIMES_BEGIN,
    TIMES_END,
    find_chosen,
    format_claims,
    make_anchors_table,
    make_claims_table,
    make_results_table,
    make_times_table,
    renew_docs,
)
from fer_utils.pipeline.planning import needed_files
from fer_utils.pipeline.publish import Folders
from fer_utils.pipeline.report_files import read_report_record
from fer_utils.pipeline.stages import STAGES
from fer_utils.pipeline.takeaways import read_takeaways
from fer_utils.report import CLAIM_PROJECTS, Report, to_markdown

ROW = {
    **{"model": "cnn", "split": "test", "n": 3589, "seeds": 1, "accuracy": 0.61234, "accuracy_sd": float("nan")},
    **{"ci_low": 0.59, "ci_high": 0.63, "macro_f1": 0.5512, "accuracy_no_duplicates": 0.6011, "params": 2456071},
    **{"gmacs": 0.0243, "epochs": 3, "train_seconds": 10.0, "images_per_second": 900.0},
}

CLAIM = {
    **{"id": "04_accuracy", "project": "lenet-transfer", "claim": "Baseline CNN, accuracy on test", "unit": "%"},
    **{"claimed": (60, 65), "measured": 61.0, "ci_low": 59.0, "ci_high": 63.0, "n": 3589, "seeds": 1, "epochs": 3},
    **{"start": "scratch", "conditions": "Fewer epochs.", "verdict": "confirmed"},
}


def publish(reports, standard=True, name="04_baseline_cnn", profile="cpu"):
    """Run a small notebook's worth of reporting and put it where the runner would publish it."""
    report = Report(name, tiny_faces(standard=standard), profile=profile, device="x86_64 CPU, 2 threads", out=reports)
    fig, ax = plt.subplots()
    ax.plot([1, 2], [3, 4])
    report.figure(
        fig, "04_curve", caption="A <curve>.", alt="A rising line.", data=pd.DataFrame({"x": [1, 2], "y": [3, 4]})
    )
    report.table(pd.DataFrame({"a": [0.123456, np.nan], "n": [35887, 2]}), "04_numbers", "Some numbers.", digits=2)
    verdicts = pd.DataFrame({"model": ["cnn"], "verdict": ["helps"], "verdict_no_duplicates": ["hurts"]})
    report.table(verdicts, "04_comparison", "A comparison.")
    report.summary(**ROW)
    report.summary(**ROW | {"split": "val"})
    report.claim(**CLAIM | {"id": f"{name[:2]}_accuracy"})
    (reports / "manifests").mkdir(exist_ok=True)
    (reports / "manifest.json").rename(reports / "manifests" / f"{name}.json")
    return report


def test_a_small_p_value_is_never_rounded_to_zero():
    table = pd.DataFrame({"p_holm": [3e-9, 0.25], "mcnemar_p": [0.00005, 0.05], "drop": [3e-9, 0.25]})
    first, second = to_markdown(table, 4).splitlines()[2:]
    assert [cell.strip() for cell in first.split("|")[1:-1]] == ["< 0.0001", "< 0.0001", "0.0000"]
    assert [cell.strip() for cell in second.split("|")[1:-1]] == ["0.2500", "0.0500", "0.2500"]


def test_table_keeps_full_precision_in_csv_and_rounds_in_markdown(tmp_path):
    publish(tmp_path)
    assert "0.123456" in (tmp_path / "tables/04_numbers.csv").read_text()
    markdown = (tmp_path / "tables/04_numbers.md").read_text()
    assert "0.12 " in markdown and "0.1234" not in markdown and "35,887" in markdown and "| - " in markdown


@pytest.mark.parametrize("form", ["sample", "zip", "rafdb"])
def test_only_on_the_sample_verdicts_come_with_a_warning(tmp_path, monkeypatch, form):
    shown = []
    monkeypatch.setattr(report_module, "display", lambda text: shown.append(text.data))
    dataset = replace(tiny_faces(standard=True), form=form)
    Report("04_baseline_cnn", dataset, profile="cpu", device="CPU", out=tmp_path).warn_if_sample()
    assert [report_module.SAMPLE_NOTE in text for text in shown] == ([True] if form == "sample" else [])


def test_figure_has_alt_text_and_its_data(tmp_path):
    publish(tmp_path)
    assert b"A rising line." in (tmp_path / "figures/04_curve.png").read_bytes()
    assert pd.read_csv(tmp_path / "figures/04_curve.csv").y.tolist() == [3, 4]
    assert plt.get_fignums() == []


def test_same_inputs_give_the_same_bytes(tmp_path):
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        publish(tmp_path / run)
        build_report(tmp_path / run, {"stages": {}})
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) >= 9
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_page_is_self_contained_and_holds_everything(tmp_path):
    publish(tmp_path)
    build_report(tmp_path, {"commit": "abc123"})
    page = (tmp_path / "report.html").read_text()
    assert '<h2 id="04_baseline_cnn">04 · How far does a LeNet-style CNN get?</h2>' in page
    assert 'alt="A rising line."' in page and "A &lt;curve&gt;." in page and "abc123" in page and "35,887" in page
    assert not re.findall(r'src="(?!data:)|<link|url\(', page), "the page loads something from elsewhere"
    files = re.findall(r'href="((?:tables|figures)/[^"]+|summary\.csv)"', page)
    assert {"tables/04_numbers.csv", "figures/04_curve.csv", "figures/04_curve.png", "summary.csv"} <= set(files)
    assert [file for file in files if not (tmp_path / file).is_file()] == []
    assert json.loads((tmp_path / "provenance.json").read_text()) == {"commit": "abc123"}


# None of this may be on a page of the embedded sample.
VERDICTS = (
    "verdict</th>",
    ">confirmed<",
    ">helps<",
    ">hurts<",
    "this project: cnn",
    "What we learned",
    "models were evaluated",
    "<svg",
    "Teaching pack",
    "Every number on this page",
    "Claims tested again",
)


def test_page_of_real_data_has_verdicts_and_no_banner(tmp_path):
    publish(tmp_path)
    build_report(tmp_path, {})
    page = (tmp_path / "report.html").read_text()
    assert f"<title>{TITLE}</title>" in page and f"<h1>{TITLE}</h1>" in page
    assert 'class="banner"' not in page and SAMPLE_BANNER not in page
    assert [text for text in VERDICTS if text not in page] == []


def test_page_of_the_embedded_sample_never_looks_like_a_result(tmp_path):
    publish(tmp_path, profile="sample")
    build_report(tmp_path, {})
    page = (tmp_path / "report.html").read_text()
    assert '<p class="banner" role="note">Embedded sample: these numbers say nothing about FER2013</p>' in page
    assert page.index('class="banner"') < page.index("<main")
    assert f"<title>{SAMPLE_TITLE}</title>" in page and f"<h1>{SAMPLE_TITLE}</h1>" in page and TITLE not in page
    assert [text for text in VERDICTS if text in page] == []
    assert "this table has no verdicts" in page and 'id="table-04_comparison"' in page
    assert "61.0 % (59.0\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}63.0)" in page


def test_one_notebook_on_the_sample_is_enough_for_the_banner(tmp_path):
    publish(tmp_path)
    publish(tmp_path, name="05_attention_resnet", profile="sample")
    build_report(tmp_path, {})
    page = (tmp_path / "report.html").read_text()
    assert f">{SAMPLE_BANNER}</p>" in page and ">confirmed<" not in page


def test_page_says_of_each_notebook_when_and_from_which_code_it_was_run(tmp_path):
    publish(tmp_path)
    run = {"finished": "2026-11-24T18:45:32+00:00", "commit": "d702b8cf8fd1", "dirty": True}
    build_report(tmp_path, {"stages": {"04_baseline_cnn": run}})
    page = " ".join((tmp_path / "report.html").read_text().split())
    assert "Profile cpu, x86_64 CPU, 2 threads, 2026-11-24, commit d702b8c with changes. " in page


def test_summary_and_claims_have_their_columns(tmp_path):
    publish(tmp_path)
    build_report(tmp_path, {})
    summary = pd.read_csv(tmp_path / "summary.csv")
    assert list(summary.columns) == report_module.SUMMARY_COLUMNS and set(summary.accuracy) == {0.61234}
    assert list(pd.read_csv(tmp_path / "tables/claims.csv").columns) == report_module.CLAIM_COLUMNS


def make_claims(*changes):
    """A row of claims.csv for each change to CLAIM."""
    claimed_low, claimed_high = CLAIM["claimed"]
    row = {**CLAIM, "claimed_low": claimed_low, "claimed_high": claimed_high}
    return pd.DataFrame([row | change for change in changes], columns=report_module.CLAIM_COLUMNS)


@pytest.mark.parametrize(
    ("changes", "claimed", "measured"),
    [
        ({}, "60-65 %", "61.0 % (59.0 to 63.0)"),
        ({"claimed_low": 52.38, "claimed_high": 52.38, "ci_low": None, "ci_high": None}, "52.38 %", "61.0 %"),
        ({"claimed_low": None, "claimed_high": None, "measured": None}, "in words", "-"),
        (
            {"unit": "points", "claimed_low": 4.2, "claimed_high": 4.2, "measured": 0.56}
            | {"ci_low": -0.86, "ci_high": 2.0},
            *("+4.2 points", "+0.56 points (-0.86 to +2.00)"),
        ),
        (
            {"unit": "fraction of image width", "claimed_low": 0.0386, "claimed_high": 0.0386, "measured": 0.02114}
            | {"ci_low": 0.0205, "ci_high": 0.0219},
            *("0.0386 of image width", "0.0211 of image width (0.0205 to 0.0219)"),
        ),
    ],
)
def test_claims_are_shown_with_their_units_and_intervals(changes, claimed, measured):
    [(project, table)] = format_claims(make_claims(changes)).items()
    assert project == CLAIM["project"]
    assert (table.claimed.item(), table.measured.item()) == (claimed, measured)


def test_what_a_claim_does_not_have_is_shown_as_a_dash():
    nothing = {"n": None, "seeds": None, "epochs": None, "start": "", "conditions": np.nan}
    [table] = format_claims(make_claims(nothing, {})).values()
    assert table.iloc[0][list(nothing)].tolist() == ["-"] * 5
    assert table.iloc[1][list(nothing)].tolist() == ["3,589", "1", "3", "scratch", "Fewer epochs."]


def test_a_manifest_with_claims_of_an_older_version_is_named(tmp_path):
    publish(tmp_path)
    manifest = tmp_path / "manifests" / "04_baseline_cnn.json"
    older = json.loads(manifest.read_text()) | {"claims": [{"claim": "x", "source": "s", "claimed": "60 %"}]}
    manifest.write_text(json.dumps(older))
    with pytest.raises(ValueError, match=r"04_baseline_cnn\.json is damaged; run 04_baseline_cnn again"):
        build_report(tmp_path, {})


def test_anchors_say_what_was_selected_where_and_end_with_our_best_on_val():
    results = pd.DataFrame(
        [
            {**ROW, "notebook": notebook, "model": model, "split": split, "accuracy": accuracy}
            for notebook, model, split, accuracy in [
                ("04", "good", "val", 0.61), ("04", "good", "test", 0.60), ("05", "lucky", "val", 0.60),
                ("05", "lucky", "test", 0.66), ("07", "ensemble_greedy", "test", 0.65),
                ("11", "best_on_rafdb", "val", 0.90), ("11", "best_on_rafdb", "test", 0.90),
            ]
        ]
    )  # fmt: skip
    anchors = make_anchors_table(results)
    assert set(anchors.selected_on) == {"val", "test", "unclear", "not stated"} and anchors.notna().all(axis=None)
    assert len(make_anchors_table(results[:0].astype(object))) == len(anchors) - 2  # no notebook has added a row yet
    assert anchors.claimed.tail(2).tolist() == ["60.00%", "65.00%"] and "lucky" not in anchors.to_string()
    shown = make_results_table(results.assign(profile="cpu", device="CPU"))
    assert "lucky" in shown and "rafdb" not in shown, "these are FER2013's results"


def test_an_ensemble_that_is_best_on_val_is_named_once_with_its_test_row():
    rows = [
        ("07", "ensemble_greedy", "test", 0.65), ("12", "ensemble_flip", "val", 0.64),
        ("12", "ensemble_flip", "test", 0.70), ("12", "small", "val", 0.62), ("12", "small", "test", 0.72),
    ]  # fmt: skip
    names = ("notebook", "model", "split", "accuracy")
    results = pd.DataFrame([{**ROW, **dict(zip(names, row, strict=True))} for row in rows])
    assert find_chosen(results).accuracy.tolist() == [0.70, 0.65]
    assert "is right on 70.0 % of" in make_headline(results)


def test_rows_with_missing_or_misspelt_columns_are_refused(tmp_path):
    report = Report("04", tiny_faces(), "cpu", "CPU", tmp_path)
    with pytest.raises(ValueError, match="acuracy"):
        report.summary(**ROW, acuracy=1)
    with pytest.raises(ValueError, match="macro_f1"):
        report.summary(**{k: v for k, v in ROW.items() if k != "macro_f1"})


@pytest.mark.parametrize(
    ("claimed", "low", "high"), [((60, 65), 60, 65), (52.38, 52.38, 52.38), (np.float32(0.5), 0.5, 0.5), (None,) * 3]
)
def test_a_claim_is_a_number_a_range_or_words(tmp_path, claimed, low, high):
    report = Report("04_baseline_cnn", tiny_faces(), "cpu", "CPU", tmp_path)
    report.claim(**CLAIM | {"claimed": claimed, "seeds": np.int64(2)})
    [row] = json.loads((tmp_path / "manifest.json").read_text())["claims"]
    assert list(row) == report_module.CLAIM_COLUMNS
    assert (row["claimed_low"], row["claimed_high"], row["seeds"]) == (low, high, 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"project": "student project 3"}, "no project 'student project 3'; use one of landmark-attention, "),
        ({"id": "05_accuracy"}, "must start with the notebook's number, 04_"),
        ({"id": "04_taken"}, "the id is taken"),
        ({"measured": float("nan")}, "measured is nan; pass a finite number, or None"),
        ({"ci_high": np.float64("inf")}, "ci_high is inf"),
        ({"claimed": (60, float("nan"))}, "claimed_high is nan"),
        ({"epochs": float("nan")}, "epochs is nan"),
    ],
)
def test_a_wrong_claim_is_refused(tmp_path, wrong, message):
    report = Report("04_baseline_cnn", tiny_faces(), "cpu", "CPU", tmp_path)
    report.claim(**CLAIM | {"id": "04_taken"})
    with pytest.raises(ValueError, match=message):
        report.claim(**CLAIM | wrong)
    assert len(json.loads((tmp_path / "manifest.json").read_text())["claims"]) == 1


def test_non_standard_data_is_stamped_on_every_table(tmp_path):
    publish(tmp_path, standard=False)
    build_report(tmp_path, {})
    assert "Non-standard data: 84 images" in (tmp_path / "tables/04_numbers.md").read_text()
    assert "Non-standard data: 84 images" in (tmp_path / "report.html").read_text()


def test_docs_get_claims_results_and_times_between_their_markers(tmp_path):
    def block(begin, end):
        return f"{begin}\nold\n{end}\n"

    results, running = pages = [tmp_path / page for page in GENERATED_PAGES]
    (tmp_path / "docs").mkdir()
    claims_block, results_block = block(CLAIMS_BEGIN, CLAIMS_END), block(RESULTS_BEGIN, RESULTS_END)
    results.write_text(f"# Title\n{claims_block}Text.\n{results_block}The end.\n")
    running.write_text(f"# Title\n{block(TIMES_BEGIN, TIMES_END)}The end.\n")
    details = {"id": "04_detail", "claim": "a detail"}
    claims = make_claims({"id": MAIN_CLAIMS[0]}, details, {"id": MAIN_CLAIMS[1], "project": "efficientnet-ensemble"})
    summary = pd.DataFrame([{"notebook": "04", "profile": "cpu", "device": "CPU", **ROW}])
    facts = {"seconds": 90.0, "peak_memory_mb": 1234, "profile": "cpu", "device": "cpu"}
    texts = renew_docs(tmp_path, claims, summary, {"stages": {"04_baseline_cnn": facts}})
    assert list(texts) == pages
    for text in texts.values():
        assert "old" not in text and text.startswith("# Title\n") and text.endswith("The end.\n")
    shown_claims, shown_results = texts[results].split("Text.")
    assert "| 61.0 % (59.0 to 63.0) | 3,589 | 1" in shown_claims and "a detail" not in shown_claims
    project = CLAIM_PROJECTS["lenet-transfer"]
    assert f"### [{project.title}]({project.link})\n" in shown_claims
    assert "### Facial Expression Recognition System (2025)\n" in shown_claims
    assert "Split: test. n: 3,589. profile: cpu. device: CPU.\n" in shown_results and "61.2%" in shown_results
    assert "| 1.5       | 1.2 GB" in texts[running]
    for path, text in texts.items():
        path.write_text(text)
    assert renew_docs(tmp_path, claims, summary, {"stages": {"04_baseline_cnn": facts}}) == texts
    results.write_text(texts[results].replace(CLAIMS_END, ""))
    with pytest.raises(ValueError, match=r"docs/results\.md must have the lines"):
        renew_docs(tmp_path, claims, summary, {"stages": {}})


def test_docs_of_this_project_agree_with_its_reports():
    reports = PROJECT_ROOT / "reports"
    results, running = ((PROJECT_ROOT / page).read_text(encoding="utf8") for page in GENERATED_PAGES)
    claims = pd.read_csv(reports / "tables" / "claims.csv")
    assert set(MAIN_CLAIMS) <= set(claims.id)
    assert results.split(CLAIMS_BEGIN)[1].split(CLAIMS_END)[0].strip() == make_claims_table(claims)
    shown = results.split(RESULTS_BEGIN)[1].split(RESULTS_END)[0].strip()
    assert shown == make_results_table(pd.read_csv(reports / "summary.csv"))
    shown = running.split(TIMES_BEGIN)[1].split(TIMES_END)[0].strip()
    assert shown == make_times_table(json.loads((reports / "provenance.json").read_text()))


def test_of_a_generated_page_only_what_is_generated_counts(tmp_path):
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    hashes = []
    for text, table in [("Text.", "old"), ("Other text.", "old"), ("Text.", "new")]:
        page.write_text(f"{text}\n{CLAIMS_BEGIN}\n{table}\n{CLAIMS_END}\n")
        hashes.append(hash_content(page))
    assert hashes[0] == hashes[1] != hashes[2]


def test_report_of_this_project_records_its_generated_pages():
    folders = Folders.of(PROJECT_ROOT, "cpu", custom=False)
    assert set(GENERATED_PAGES) <= set(read_report_record(folders)["files"])


def test_results_keep_a_column_whose_values_differ():
    rows = [{"notebook": "04", "profile": profile, "device": "CPU", **ROW} for profile in ("cpu", "full")]
    table = make_results_table(pd.DataFrame(rows))
    assert table.startswith("Split: test. n: 3,589. device: CPU.\n\n| notebook") and "| full " in table


def test_published_report_is_consistent(as_committed):
    """Class totals are official, recalls average to the accuracy, and the logits give the summary's numbers."""
    tables = PROJECT_ROOT / "reports" / "tables"
    counts = pd.read_csv(tables / "01_class_counts.csv").groupby("split").n.sum()
    assert counts.to_dict() == {"train": 28709, "val": 3589, "test": 3589}
    for notebook in ("04", "05", "11"):
        recall = pd.read_csv(tables / f"{notebook}_recall.csv").set_index("emotion")
        parts = recall.drop("all")
        assert parts.n.sum() == recall.n["all"] and parts.hits.sum() == recall.hits["all"]
        assert (parts.recall * parts.n).sum() / parts.n.sum() == pytest.approx(recall.recall["all"])
    summary = pd.read_csv(PROJECT_ROOT / "reports" / "summary.csv")
    test_labels = np.repeat(np.arange(7), pd.read_csv(tables / "01_class_counts.csv").query("split == 'test'").n)
    for row in summary[summary.split == "test"].itertuples():
        with np.load(PROJECT_ROOT / "reports" / "predictions" / f"{row.notebook[:2]}_{row.model}.npz") as file:
            hits = file["test"].argmax(2) == test_labels  # zip and folder rows are in class order
        assert hits.mean() == pytest.approx(row.accuracy, abs=6e-4)  # float16 logits may tie


def test_published_logits_are_all_that_the_ensembles_need():
    [stage] = [stage for stage in STAGES if stage.name == "07_ensemble_gflops"]
    folders = Folders.of(PROJECT_ROOT, "cpu", custom=False)
    assert list(stage.needs) == ["04_baseline_cnn", "05_attention_resnet", "06_efficientnet_ablation"]
    for need in stage.needs:
        assert all(needed_files(stage, need, folders).values()), f"reports/ lacks results of {need}"


def published_artifacts(kind):
    """Every published table or figure, as its manifest describes it, and its numbers."""
    for path in sorted((PROJECT_ROOT / "reports" / "manifests").glob("*.json")):
        for artifact in json.loads(path.read_text())["artifacts"]:
            if artifact["kind"] == kind:
                file = PROJECT_ROOT / "reports" / f"{kind}s" / f"{artifact['name']}.csv"
                yield artifact, pd.read_csv(file, keep_default_na=False, na_values=[""])


def cells(markdown):
    """A Markdown table without its spaces, and with a dash in empty cells: CSV files cannot tell these from missing."""
    return re.sub(r"\|(?=\|)", "|-", re.sub(r"[ \t]+|(?<=-)-+", "", markdown))


def test_published_markdown_and_page_hold_the_numbers_of_the_csv_files():
    page = (PROJECT_ROOT / "reports" / "report.html").read_text()
    tables = list(published_artifacts("table"))
    assert len(tables) > 20
    for artifact, table in tables:
        markdown = (PROJECT_ROOT / "reports" / "tables" / f"{artifact['name']}.md").read_text()
        assert cells(markdown) == cells(f"{artifact['caption']}\n\n{to_markdown(table, artifact['digits'])}\n")
        assert to_html(readable_table(table, artifact["digits"], artifact["name"])) in page


def test_html_tables_mark_the_cells_that_a_browser_must_not_squeeze():
    verdict, claim = "no difference shown; +4.2 outside the interval over 2 seeds", "gain from attention, recipe ours"
    html = to_html(pd.DataFrame([{"model": "a < b", "mean": "< 0.001", "claim": claim, "verdict": verdict}]))
    assert "<td class=short>a &lt; b</td>" in html and "<td class=number>&lt; 0.001</td>" in html
    assert '<th scope="col" class=number>mean</th>' in html
    assert f"<td>{claim}</td>" in html and f"<td class=long>{verdict}</td>" in html


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet50_fused_attention", "ResNet-50, fused, attention"),
        ("attention_resnet18_original", "Attention ResNet-18, original recipe"),
        ("05_best_resnet18", "Best ResNet-18"),
        ("baseline_cnn_no_augmentation", "Baseline CNN, no augmentation"),
        ("vgg16_fine_tuned_10_percent_of_labels", "VGG-16, fine-tuned, 10 % of the labels"),
        ("efficientnet_mixup_cutmix", "EfficientNet-B0, mixup and cutmix"),
        ("ensemble_best_pair", "Ensemble, best pair"),
        ("original_pair", "Original pair"),
        ("wholesome_cnnx", "Wholesome cnnx"),
    ],
)
def test_code_names_become_words(name, words):
    assert readable_name(name) == words


def test_code_names_within_texts_and_titles_become_words():
    assert readable_title("07_ensemble_gflops") == "Ensemble GFLOPs"
    assert readable_title("05_learning_curves_ours") == "Learning curves ours"
    assert readable_text("mcnemar_p of best_resnet18 on x86_64 CPU") == "p (McNemar) of best ResNet-18 on x86_64 CPU"


def test_tables_show_percent_points_and_intervals():
    row = {"notebook": "04_baseline_cnn", "model": "baseline_cnn", "n": 3589, "accuracy": 0.6376, "ci_low": 0.6208}
    row |= {
        "ci_high": 0.6531,
        "macro_f1": 0.567,
        "difference": -0.0051,
        "difference_low": -0.02,
        "difference_high": 0.01,
    }
    shown = readable_table(pd.DataFrame([row | {"p_value": 1e-9, "accuracy_sd": np.nan}]), 3)
    assert shown.iloc[0].to_dict() == {
        **{"notebook": "04", "model": "Baseline CNN", "n": "3,589", "accuracy (%)": "63.8"},
        **{"95 % interval (%)": "62.1 to 65.3", "macro-F1": "0.567", "difference (points)": "-0.51"},
        **{"difference: 95 % interval (points)": "-2.00 to +1.00", "p": "< 0.001", "sd over seeds (%)": "-"},
    }
    errors = readable_table(pd.DataFrame({"mean_error": [0.0184], "ci_low": [0.0177], "ci_high": [0.0191]}), 4)
    assert errors.iloc[0].tolist() == ["0.0184", "0.0177 to 0.0191"], "fractions of the image width stay as they are"
    scores = {"above_zero": [0.5], "score": [0.2], "ci_low": [0.1], "ci_high": [0.3], "over_area": [0.5]}
    assert readable_table(pd.DataFrame(scores), 1).iloc[0].tolist() == ["50.0", "0.2", "0.1 to 0.3", "0.5"]
    assert readable_table(pd.DataFrame({"share": [12 / 35887, 0.5]}), 4)["share (%)"].tolist() == ["0.03", "50.00"]


def test_no_published_column_is_lost_when_it_gets_a_readable_name():
    for artifact, table in published_artifacts("table"):
        intervals = sum(re.sub("low$", "high", name) in table for name in table if name.endswith("low"))
        shown = readable_table(table, artifact["digits"], artifact["name"])
        assert len(shown.columns) == len(table.columns) - intervals, artifact["name"]
        assert not [head for head in shown if "_" in head], artifact["name"]


def test_telling_figures_are_published_and_drawn_by_their_notebooks():
    published = {artifact["name"] for artifact, _ in published_artifacts("figure")}
    assert list(TELLING_FIGURES) == sorted(stage.name for stage in STAGES)
    for notebook, figures in TELLING_FIGURES.items():
        code = (PROJECT_ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf8")
        is_published = (PROJECT_ROOT / "reports" / "manifests" / f"{notebook}.json").exists()
        missing = [name for name in figures if (name not in published if is_published else name not in code)]
        assert 2 <= len(figures) <= 3 and missing == []


def test_six_findings_are_told_with_the_published_numbers():
    reports = PROJECT_ROOT / "reports"
    sentences = {finding.figure: tell_finding(finding, reports) for finding in FINDINGS}
    assert len(sentences) == 6 and all(sentences.values())
    page = (reports / "report.html").read_text()
    for figure, sentence in sentences.items():
        assert (reports / "figures" / f"{figure}.png").exists() and f"<figcaption>{sentence} <a" in page
    test = pd.read_csv(reports / "tables" / "01_near_duplicates.csv").set_index("split").loc["test"]
    assert f"{100 * test.exact_copy_in_train / test.n:.1f} % of its 3,589 images" in sentences["01_near_duplicates"]


def test_a_finding_without_its_columns_is_left_out(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "01_near_duplicates.csv").write_text("split,other\ntest,1\n")
    assert [tell_finding(finding, tmp_path) for finding in FINDINGS] == [""] * len(FINDINGS)


def test_every_notebook_has_a_few_takeaways_without_its_limits():
    for stage in STAGES:
        takeaways = read_takeaways(stage.name)
        assert 3 <= takeaways.count("\n") <= 5 and "**Limits" not in takeaways, stage.name
    assert "$" not in markdown_to_html(read_takeaways("04_baseline_cnn"))


def test_a_notebook_without_results_says_so(tmp_path):
    publish(tmp_path)
    build_report(tmp_path, {})
    section = (tmp_path / "report.html").read_text().split('id="12_best_model"')[1].split("</section>")[0]
    assert "No results of this notebook are published yet" in section and "<figure" not in section


def test_claims_become_cards_and_missing_ones_are_skipped():
    [card] = make_cards(
        make_claims({"verdict": "not confirmed: less than its area", "id": MAIN_CLAIMS[0]}, {"id": "x"})
    )
    assert (card["verdict"], card["rest"], card["kind"]) == ("not confirmed", "less than its area", "no")
    assert (card["claimed"], card["measured"]) == ("60-65 %", "61.0 % (59.0 to 63.0)")


def test_marks_of_equal_cost_stand_side_by_side():
    assert spread([10, 100, 100, 101, 300], 10) == pytest.approx([10, 90.333, 100.333, 110.333, 300], abs=1e-3)


def test_pictures_keep_their_natural_size(tmp_path):
    fig, ax = plt.subplots(figsize=(5, 3))
    ax.plot([1, 2])
    fig.savefig(tmp_path / "x.png", dpi=144)
    picture = encode_picture(tmp_path / "x.png", 96)
    assert (picture["width"], picture["height"]) == (480, 288) and picture["src"].startswith("data:image/webp;base64,")


def test_published_page_is_small_enough_to_mail():
    assert (PROJECT_ROOT / "reports" / "report.html").stat().st_size < 6_000_000


def test_published_figures_show_the_numbers_of_the_table_of_the_same_name():
    tables = {artifact["name"]: table for artifact, table in published_artifacts("table")}
    pairs = [
        (data, tables[figure["name"]]) for figure, data in published_artifacts("figure") if figure["name"] in tables
    ]
    assert len(pairs) >= 3
    for data, table in pairs:
        for column in data.columns.intersection(table.columns):
            assert set(data[column].dropna()) <= set(table[column].dropna()), column


def test_results_page_names_notebooks_that_are_older_than_their_code_or_not_published(as_committed):
    def code(path):
        cells = json.loads(path.read_text(encoding="utf8"))["cells"]
        codes = [cell for cell in cells if cell["cell_type"] == "code" and not is_injected(cell)]
        return [normalize_cell("".join(cell["source"])) for cell in codes]

    def is_injected(cell):
        return "injected-parameters" in cell["metadata"].get("tags", [])

    def named(sentence):
        found = re.search(rf"{sentence}: ([\d, ]+)\.", one_line("docs/results.md"))
        return found[1].split(", ") if found else []

    files = {name: PROJECT_ROOT / "outputs" / f"{name}.ipynb" for name in sorted(stage.name for stage in STAGES)}
    published = {PROJECT_ROOT / "notebooks" / file.name: file for file in files.values() if file.exists()}
    older = [source.name[:2] for source, executed in published.items() if code(source) != code(executed)]
    assert named("Published from an earlier version of their code") == older
    assert named("Not published yet") == [name[:2] for name, file in files.items() if not file.exists()]


def one_line(page):
    """The text of a page of this project without its line breaks."""
    return " ".join((PROJECT_ROOT / page).read_text(encoding="utf8").split())


def printed(name):
    """All that the cells of an executed notebook printed."""
    cells = json.loads((PROJECT_ROOT / "outputs" / f"{name}.ipynb").read_text(encoding="utf8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join("".join(output.get("text", [])) for output in outputs)


def test_shares_named_in_readme_and_results_are_those_of_the_tables(as_committed):
    tables = PROJECT_ROOT / "reports" / "tables"
    near = pd.read_csv(tables / "01_near_duplicates.csv").set_index("split").loc["test"]
    exact = f"{100 * near.exact_copy_in_train / near.n:.1f} % of the test images have an exact copy in"
    assert f"{exact} train, and {100 * near.share:.1f} % have an exact or near copy" in one_line("docs/results.md")
    assert f"{exact} the training split" in one_line("README.md")
    fear = pd.read_csv(tables / "01_label_agreement.csv").set_index("emotion").loc["fear"]
    shown = f"of the {fear.n:,.0f} images that FER2013 labels *fear* and that had a clear winner in this vote, "
    assert f"{shown}{100 * fear.agreement:.1f} % were voted *fear*" in one_line("README.md")


def test_three_results_of_the_readme_are_those_of_the_report(as_committed):
    text = one_line("README.md")
    reports = PROJECT_ROOT / "reports"
    summary = (
        pd.read_csv(reports / "summary.csv").query("split == 'test' and notebook == '12_best_model'").set_index("model")
    )
    choice = pd.read_csv(reports / "tables" / "12_choice.csv")  # best on val first
    small, best = summary.loc[choice.model[choice.gmacs < 0.0232].iloc[0]], summary.loc[choice.model[0]]
    facts = "reaches {1:.1f} % (n = {0.n:,}, 95 % interval {2:.1f} to {3:.1f} %)"
    for row in (small, best):
        assert facts.format(row, 100 * row.accuracy, 100 * row.ci_low, 100 * row.ci_high) in text
    left = [f"{100 * row.accuracy_no_duplicates:.1f} %" for row in (small, best)]
    assert f"Without those, the two accuracies are {left[0]} and {left[1]}" in text
    assert f"{small.gmacs:.4f} GMACs" in text and small.seeds == 3
    claims = pd.read_csv(reports / "tables" / "claims.csv").set_index("id")
    comparison = pd.read_csv(reports / "tables" / "05_comparison.csv").set_index("recipe")
    ours, original = comparison.loc["ours"], comparison.loc["original"]
    shown = f"n = {ours.n:,}, one seed, McNemar's test p = {ours.mcnemar_p:.2f}"
    assert f"Ours changed accuracy by {100 * ours['mean']:+.2f} points ({shown})" in text and ours.seeds == 1
    assert f"by {100 * original['mean']:+.2f} under the project's own recipe (p = {original.mcnemar_p:.2f})" in text
    assert f"The claim was {claims.loc['05_attention_gain_ours'].claimed_low:+.1f} points" in text
    shares = pd.read_csv(reports / "tables" / "08_region_share.csv").set_index(["emotion", "region"])
    for emotion, region, verdict in [("happy", "mouth", "confirmed"), ("fear", "eyes", "not confirmed")]:
        row, area = claims.loc[f"08_{emotion}"], f"{100 * shares.area_share[emotion, region]:.1f} %"
        interval = f"n = {row.n:.0f}, one model, 95 % interval {row.ci_low:.1f} to {row.ci_high:.1f} %"
        assert re.search(rf"For \*{emotion}\*, {row.measured:.1f} % .*?{area} .*?{interval}\)", text), emotion
        assert row.verdict.split(":")[0] == verdict


def test_small_networks_on_the_results_page_are_those_of_the_tables(as_committed):
    text = one_line("docs/results.md")
    tables = PROJECT_ROOT / "reports" / "tables"
    results = 100 * pd.read_csv(tables / "12_results.csv").query("split == 'test'").set_index("model")
    small, both = results.loc["small"], results.loc["ensemble_flip"]
    assert f"right on {small.accuracy:.1f} % of test (n = 3,589, 95 % interval {small.ci_low:.1f} to" in text
    assert f"{small.ci_high:.1f} %; {small.accuracy_no_duplicates:.1f} % without copies)" in text
    assert f"and {results.accuracy['small_flip']:.1f} % if each face is also shown mirrored" in text
    assert f"it is {both.accuracy:.1f} % ({both.ci_low:.1f} to {both.ci_high:.1f} %;" in text
    assert f"{both.accuracy_no_duplicates:.1f} % without copies)" in text
    student = pd.read_csv(tables / "12_student.csv").iloc[0]
    assert f"the distilled network is right on {100 * student.accuracy:.1f} %" in text
    assert f"seed on {100 * student.accuracy_against:.1f} % (McNemar's test, p = {student.mcnemar_p:.2f})" in text
    ablation = 100 * pd.read_csv(tables / "12_ablation.csv").set_index("network").difference
    assert f"zero-initialized norms is {ablation['without zero norms']:.1f} points of val ahead" in text
    assert f"without pooled shortcuts {-ablation['without pooled shortcuts']:.1f} behind" in text
    assert f"similar cost {-ablation['vision transformer']:.1f} behind" in text
    crowd = 100 * pd.read_csv(tables / "12_crowd.csv").set_index("the_crowd_sides_with").share
    assert (
        f"On {crowd['model']:.0f} % of the ensemble's errors" in text and f"on {crowd['label']:.0f} % on that" in text
    )


def test_findings_named_on_the_results_page_are_those_of_the_tables(as_committed):
    text = one_line("docs/results.md")
    tables = PROJECT_ROOT / "reports" / "tables"
    baseline = pd.read_csv(tables / "04_results.csv").query("split == 'test'").set_index("model")
    accuracy = 100 * baseline.loc[["baseline_cnn", "baseline_cnn_no_augmentation"], "accuracy"]
    assert "({:.1f} % with augmentation, {:.1f} % without)".format(*accuracy) in text
    lost = accuracy - 100 * baseline.accuracy_no_duplicates
    left_out = "points when the test images with a copy are left out"
    assert f"loses {lost.iloc[1]:.1f} {left_out}, the other model {lost.iloc[0]:.1f}" in text
    fresh = 100 * baseline.accuracy_no_duplicates
    assert f"copies both are right on {fresh.iloc[0]:.1f} %" in text and fresh.iloc[0] == fresh.iloc[1]
    curve = pd.read_csv(tables.parent / "figures" / "04_learning_curves.csv").groupby("run").last()
    assert f"right on {100 * curve.train_accuracy['baseline_cnn_no_augmentation']:.0f} % of train and loses" in text
    assert "McNemar's p is 0.07." in text and "p = 0.07: no difference shown" in printed("04_baseline_cnn")
    augmented = 100 * pd.read_csv(tables / "06_ablation.csv").set_index("version").select_dtypes("number")
    none, crp = augmented.loc["none"], augmented.loc["crp"]
    assert f"({crp.accuracy:.1f} % and {none.accuracy:.1f} %;" in text
    assert f"right on {none.train_accuracy:.0f} % of train and {none.val_accuracy:.0f} % of val" in text
    assert f"Mixup and cutmix reach {augmented.accuracy['mixup_cutmix']:.1f} %, behind crp (p < 0.001)" in text
    ablation = pd.read_csv(tables / "06_ablation.csv").set_index("version")
    assert ablation.p_holm["mixup_cutmix"] < 0.001
    trained = ablation[ablation.seeds > 0]
    assert trained.epochs.eq(9).all() and "9 epochs instead of 300" in text
    assert f"test, p = {ablation.p_holm['none']:.2f} after Holm's correction for two questions" in text
    fresh = f"({crp.accuracy_no_duplicates:.1f} % and {none.accuracy_no_duplicates:.1f} %, p = "
    assert fresh + f"{ablation.p_holm_no_duplicates['none']:.2f})" in text
    recall = pd.read_csv(tables / "06_recall.csv").set_index("version")
    assert "None of the three finds any of the 55 test faces labeled disgust" in text and len(trained) == 3
    assert recall.disgust.eq(0).all()
    ensembles = pd.read_csv(tables / "07_ensemble.csv").set_index("ensemble")
    assert ensembles.query("chosen == 'yes'").models.to_dict() == {"greedy selection": 2}
    ensembles = 100 * ensembles.select_dtypes("number")
    best, single = ensembles.loc["greedy selection"], ensembles.loc["best single model"]
    assert f"right on {best.accuracy:.1f} % of test, {best.difference:.1f} points more" in text
    gain = best.accuracy_no_duplicates - single.accuracy_no_duplicates
    assert f"without the copies on {best.accuracy_no_duplicates:.1f} %, {gain:.1f} points more" in text
    fresh_p = re.search(
        r"without copies \(n = .*?McNemar's test p = ([\d.e-]+)", printed("07_ensemble_gflops"), re.DOTALL
    )
    assert best.p_value / 100 < 0.001 and float(fresh_p[1]) < 0.001 and "p < 0.001 for both). With the longer" in text
    looks = pd.read_csv(tables / "claims.csv").query("id.str.startswith('08_')")
    verdicts = looks.set_index(looks.id.str.removeprefix("08_")).verdict.str.split(":").str[0]
    assert "denser on the mouth for *happy* than on average, than on the eyes" in text
    assert "*sad* at the mouth do not meet all of these conditions" in text
    assert verdicts["happy"] == "confirmed" and set(verdicts[["fear", "surprise", "sad"]]) <= {
        "partly",
        "not confirmed",
    }
    ablation = pd.read_csv(tables / "11_ablation.csv").set_index("variant")
    regions, millions = 100 * ablation.accuracy, ablation.params / 1e6
    assert f"({millions['local']:.1f} million parameters) reach {regions['local']:.1f} % of test" in text
    assert f"({millions['global']:.0f} million) {regions['global']:.1f} %." in text
    assert f"of the four regions that sees no regions reaches {regions['local_whole']:.1f} %" in text
    assert f"The fused network reaches {regions['fused']:.1f} %, a control of the same cost" in text
    whole, attention = regions["fused_whole"], regions["fused_attention"]
    assert f"sees no regions {whole:.1f} %. With attention on top it reaches {attention:.1f} %" in text
    assert f"regions that follow the landmarks {regions['fused_landmarks']:.1f} %." in text
    final = pd.read_csv(tables / "11_results.csv").query("model == 'best_local_global' and split == 'test'")
    shown = f"regions alone trained on all images (one seed), is right on {100 * final.accuracy.item():.1f} %"
    assert shown in text
    for claim in [*claims_about_resnet18(tables), *claims_about_starts(tables)]:
        assert claim in text


def claims_about_resnet18(tables: Path) -> Iterator[str]:
    """Yield what the results page must say of notebook 05."""
    gain = pd.read_csv(tables / "05_comparison.csv").set_index("recipe")
    points, p_value = 100 * gain["mean"], gain.mcnemar_p
    yield f"{points['original']:+.1f} points under the original recipe (McNemar's test, p = {p_value['original']:.2f})"
    yield f"by {points['ours']:+.1f} under ours (p = {p_value['ours']:.2f})"
    val = 100 * pd.read_csv(tables / "05_starts.csv").set_index(["stem", "start"]).val_accuracy
    yield f"keeps more positions reaches {val['middle', 'scratch']:.1f} %, the start from notebook 03's landmark model"
    yield f"{val['imagenet', 'landmarks']:.1f} %, neither of them {val['imagenet', 'scratch']:.1f} %"
    rare = 100 * pd.read_csv(tables / "05_losses.csv").set_index("method").select_dtypes("number")
    found, cost = rare.disgust_recall, rare.accuracy["none"] - rare.accuracy
    assert found["none"] == 0 and found["balanced_sampling"] == found["class_weights"]
    yield f"Class weights find {found['class_weights']:.0f} % of them and cost {cost['class_weights']:.1f}"
    yield f"Balanced sampling finds as many and costs {cost['balanced_sampling']:.1f}"
    final = pd.read_csv(tables / "05_results.csv").query("model == 'best_resnet18' and split == 'test'").iloc[0]
    views = pd.read_csv(tables / "05_views.csv").set_index("views")
    assert views.val_accuracy.idxmax() == "shifts" and views.looks["shifts"] == 10 and gain.seeds.eq(1).all()
    yield f"{final.epochs} epochs and ten shifted views, is right on {100 * final.accuracy:.1f} % of test"
    yield f"({100 * final.accuracy_no_duplicates:.1f} % without copies)"


def claims_about_starts(tables: Path) -> Iterator[str]:
    """Yield what the results page must say of notebook 10."""
    curve = pd.read_csv(tables / "10_label_curve.csv").set_index(["network", "start", "mode", "labels"])
    accuracy = 100 * curve.accuracy.unstack()
    differences = pd.read_csv(tables / "10_differences.csv").set_index(["network", "start", "mode", "fraction"])
    p_value = differences.mcnemar_p.sort_index()
    scratch, tuned, rotation = (
        accuracy.loc["resnet18", start, mode]
        for start, mode in (("scratch", "scratch"), ("landmarks", "fine-tuned"), ("rotation", "fine-tuned"))
    )
    yield f"right on {tuned[287]:.1f} % of test, from scratch on {scratch[287]:.1f} %"
    yield f"With 2,872 labels it is {tuned[2872]:.1f} % and {scratch[2872]:.1f} %"
    yield f"on {tuned[28709]:.1f} %, from scratch on {scratch[28709]:.1f} %."
    p_rotation = p_value.loc["resnet18", "rotation", "fine-tuned"]
    yield f"{rotation[287]:.1f} % with 287 labels (McNemar's test against scratch, p = {p_rotation[0.01]:.2f})"
    yield f"{rotation[2872]:.1f} % with 2,872 (p = {p_rotation[0.1]:.2f})"
    yield f"{rotation[28709]:.1f} % with all of them (p = {p_rotation[1.0]:.2f})"
    yield f"after {curve.epochs['resnet18', 'scratch', 'scratch', 28709]} epochs, it is right on"
    yield f"with 2,872 labels, after {curve.epochs['vgg16', 'scratch', 'scratch', 2872]} epochs"
    assert curve.seeds.eq(1).all()
    vgg16 = accuracy.loc["vgg16"][2872]
    yield f"{vgg16['scratch', 'scratch']:.1f} % from scratch, {vgg16['landmarks', 'fine-tuned']:.1f} % from landmarks"
    yield f"{vgg16['rotation', 'fine-tuned']:.1f} % from rotations (p < 0.001 for both)"
    assert p_value.loc["vgg16", :, "fine-tuned"].max() < 0.001
    both = pd.read_csv(tables / "10_multi_task.csv").iloc[0]
    yield f"with 2,872 labels, reaches {100 * both.accuracy:.1f} %"
    yield f"(p = {both.mcnemar_p:.2f})"


def test_speeds_named_on_the_results_page_are_those_of_the_benchmark(as_committed):
    text = one_line("docs/results.md")
    table = pd.read_csv(PROJECT_ROOT / "reports" / "tables" / "benchmark_engine.csv")
    for usual, engine in zip(
        *(table[table.way == way].to_dict("records") for way in ("DataLoader", "engine")), strict=True
    ):
        speeds = f"| {usual['images per second']:.0f} images/s | {engine['images per second']:,.0f} images/s, "
        assert f"{speeds}{engine['times as fast']:.1f} times as fast | {engine['input, %']:.1f} % |" in text


def test_what_the_results_page_says_of_settings_and_seeds_is_what_was_measured(as_committed):
    text = one_line("docs/results.md")
    tables = PROJECT_ROOT / "reports" / "tables"
    settings = pd.read_csv(tables / "benchmark_settings.csv")
    speed = settings.set_index(["model", "precision", "memory format"])["images per second"].unstack([1, 2])
    assert (speed["bf16"] > speed["fp32"]).all(axis=None)
    assert (speed.xs("channels_last", axis=1, level=1) > speed.xs("contiguous", axis=1, level=1)).all(axis=None)
    compiled = settings.dropna(subset="compile seconds")
    assert len(compiled) == len(speed) == 3
    assert (compiled["images per second, compiled"].astype(float) < compiled["images per second"]).all()
    seeds = pd.read_csv(tables / "benchmark_seeds.csv").set_index(["model", "two seeds"])["images per second"].unstack()
    gains = 100 * (seeds["at once"] / seeds["one after the other"] - 1)
    assert f"gave {gains.min():.0f} to {gains.max():.0f} % more images per second" in text
