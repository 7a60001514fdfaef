"""What figures show, read back from their axes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fer_utils import metrics, plots

LABELS = np.array([0, 1, 1, 1, 0])
PROBS = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.4, 0.6], [0.45, 0.55]])


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_reliability_bars_are_as_high_as_the_accuracy():
    table = metrics.reliability(LABELS, PROBS, bins=4)
    fig = plots.plot_reliability({"before": table, "after": table})
    top_before, top_after, below_before, _ = fig.axes
    assert [bar.get_height() for bar in top_before.patches[2:]] == pytest.approx([1 / 2, 2 / 3])
    assert [bar.get_x() for bar in top_before.patches] == pytest.approx([0, 0.25, 0.5, 0.75])
    assert [bar.get_height() for bar in below_before.patches] == [0, 0, 2, 3]
    assert (top_before.get_title(), top_after.get_title()) == ("before", "after")


def test_titles_are_text_and_no_formulas(tmp_path):
    fig = plots.plot_faces(np.zeros((1, 48, 48), np.uint8), titles=["holiday_$5_and_$6.png"])
    fig.savefig(tmp_path / "faces.png")


def test_faces_may_be_gray_or_in_color():
    gray, color = np.zeros((2, 48, 48), np.uint8), np.zeros((2, 3, 100, 90), np.uint8)
    shapes = [plots.plot_faces(images).axes[0].images[0].get_array().shape for images in (gray, color)]
    assert shapes == [(48, 48), (100, 90, 3)]


def test_the_pareto_front_holds_what_no_cheaper_model_beats():
    accuracies = {"cheap": (1, 0.5), "worse": (2, 0.4), "twin": (2, 0.4), "better": (3, 0.6), "dear": (9, 0.6)}
    table = pd.DataFrame(accuracies, index=["gmacs", "accuracy"]).T.rename_axis("model").reset_index()
    table = table.assign(kind="all", ci_low=table.accuracy - 0.1, ci_high=table.accuracy + 0.1)
    ax = plots.plot_pareto(table).axes[0]
    assert [text.get_text() for text in ax.texts] == ["cheap", "better"]
    steps = next(line for line in ax.lines if line.get_label() == "Pareto front")
    np.testing.assert_allclose(steps.get_xydata(), [(1, 50), (3, 60)])
