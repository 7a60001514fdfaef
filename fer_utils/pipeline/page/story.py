"""What the report tells first: the findings of the front page, the telling figures of each notebook, the main claims.

Which figures and claims these are is decided here and nowhere else. Every number in a finding is read from a published
table; a finding whose figure or table is not published is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from fer_utils.pipeline.page.names import percent

TITLE = "Facial expression recognition on FER2013: report"
SAMPLE_TITLE = "Embedded sample: test run of the course, no results"
SAMPLE_BANNER = "Embedded sample: these numbers say nothing about FER2013"

# The claims that docs/results.md and the front page show. claims.csv has all of them, also for single landmarks,
# emotions and versions.
MAIN_CLAIMS = (
    "02_no_face",
    "03_error_mean",
    "04_baseline_accuracy",
    "05_attention_accuracy",
    "05_attention_gain_original",
    "05_attention_gain_ours",
    "06_accuracy_crp",
    "07_two_models_accuracy",
    "07_two_models_cost",
    "07_single_model_efficiency",
    "08_surprise",
    "08_fear",
    "08_happy",
    "08_sad",
    "10_resnet18_fine_tuned",
    "11_rafdb_accuracy",
)
# Notebook -> the figures that its section shows; all others are folded.
TELLING_FIGURES = {
    "01_exploration": ("01_mean_faces", "01_label_agreement", "01_near_duplicates"),
    "02_landmark_labelling": ("02_mean_points", "02_failures", "02_noise_floor"),
    "03_landmark_model": ("03_cumulative_error", "03_largest_errors"),
    "04_baseline_cnn": ("04_learning_curves", "04_confusion_matrix"),
    "05_attention_resnet": ("05_seeds", "05_losses", "05_gates"),
    "06_efficientnet_ablation": ("06_versions", "06_ablation"),
    "07_ensemble_gflops": ("07_pareto", "07_error_correlation", "07_reliability"),
    "08_gradcam": ("08_by_hand", "08_faithfulness", "08_region_share"),
    "09_live_demo": ("09_found", "09_crops"),
    "10_transfer_learning": ("10_label_curve", "10_projection"),
    "11_local_global": ("11_regions_on_faces", "11_seeds", "11_blind"),
    "12_best_model": ("12_ablation", "12_distillation", "12_pareto"),
}


@dataclass(frozen=True)
class Finding:
    """A figure of the front page, and how its sentence is made from a published file."""

    figure: str
    source: str  # CSV file in reports/ that has the numbers
    tell: Callable[[pd.DataFrame], str]


def tell_agreement(agreement: pd.DataFrame) -> str:
    """One sentence on how often the crowd of FER+ agrees with FER2013's labels."""
    rows = agreement.set_index("emotion").drop("all", errors="ignore")
    low, high = rows.agreement.idxmin(), rows.agreement.idxmax()
    return (
        f"The labels are contested: the majority of ten voters agrees with {percent(rows.agreement[low])} of the images"
        f" labeled {low} (n = {rows.n[low]:,.0f}), and with {percent(rows.agreement[high])} of those labeled {high}"
        f" (n = {rows.n[high]:,.0f})."
    )


def tell_copies(copies: pd.DataFrame) -> str:
    """One sentence on copies of test images in train."""
    test = copies.set_index("split").loc["test"]
    exact = percent(test.exact_copy_in_train / test.n)
    return (
        f"The test split leaks: {exact} of its {test.n:,.0f} images have an exact copy in the training split, and"
        f" {percent(test.share)} an exact or near copy."
    )


def tell_best(results: pd.DataFrame) -> str:
    """One sentence on the best model of notebook 12 and its best small one, both chosen on val."""
    val, test = (results[results.split == split].set_index("model") for split in ("val", "test"))
    choice = val.accuracy_no_duplicates.sort_values(ascending=False)
    smallest = val.index[val.gmacs <= 1.01 * val.gmacs.min()]
    small, best = test.loc[choice[smallest].index[0]], test.loc[choice.index[0]]
    return (
        f"A network of {small.gmacs:.4f} GMACs per face, trained from scratch, is right on {percent(small.accuracy)} of"
        f" test (n = {small.n:,.0f}, 95 % interval {percent(small.ci_low)} to {percent(small.ci_high)}; without copies"
        f" {percent(small.accuracy_no_duplicates)}). The best model costs {best.gmacs / small.gmacs:.0f} times as much"
        f" and is right on {percent(best.accuracy)} (without copies {percent(best.accuracy_no_duplicates)})."
    )


def tell_attention(claims: pd.DataFrame) -> str:
    """One sentence on the gain from channel attention, which is a claim, in points."""
    row = claims.set_index("id").loc["05_attention_gain_ours"]
    return (
        f"Channel attention changed the accuracy of ResNet-18 by {row.measured:+.2f} points (n = {row.n:,.0f}, seeds:"
        f" {row.seeds:.0f}{_interval_over_seeds(row)}); the project behind it claimed {row.claimed_low:+.1f}."
    )


def _interval_over_seeds(row: pd.Series) -> str:
    """Return the interval in points; "" with one seed, which has none."""
    if pd.isna(row.ci_low):
        return ""
    return f", 95 % interval {row.ci_low:+.2f} to {row.ci_high:+.2f}"


def tell_optimism(subsets: pd.DataFrame) -> str:
    """One sentence on what a choice on test would have gained."""
    chosen, luckiest = subsets.loc[subsets.val.idxmax()], subsets.loc[subsets.test.idxmax()]
    gain = chosen.test < luckiest.test
    more = f"reported {percent(luckiest.test)}" if gain else "picked the same one"
    return (
        f"Of {len(subsets):,} ensembles, the one that is best on val is right on {percent(chosen.test)} of test."
        f" Choosing on test, which nobody may do, would have {more}."
    )


def tell_labels(curve: pd.DataFrame) -> str:
    """One sentence on what a pretrained start gains with few and with all labels."""
    rows = curve[curve.network == "resnet18"].set_index(["labels", "start", "mode"]).accuracy
    few, many = curve.labels.min(), curve.labels.max()
    tuned, scratch = (
        [percent(rows[labels, start, mode]) for labels in (few, many)]
        for start, mode in (("landmarks", "fine-tuned"), ("scratch", "scratch"))
    )
    return (
        f"With {few:,} labels, a ResNet-18 that was pretrained to find landmarks is right on {tuned[0]} of test, one"
        f" trained from scratch on {scratch[0]}; with all {many:,} labels, {tuned[1]} and {scratch[1]}."
    )


FINDINGS = (
    Finding("12_confusion_matrix", "tables/12_results.csv", tell_best),
    Finding("01_label_agreement", "tables/01_label_agreement.csv", tell_agreement),
    Finding("01_near_duplicates", "tables/01_near_duplicates.csv", tell_copies),
    Finding("05_seeds", "tables/claims.csv", tell_attention),
    Finding("07_optimism", "figures/07_optimism.csv", tell_optimism),
    Finding("10_label_curve", "tables/10_label_curve.csv", tell_labels),
)
