"""Code names and fractions as a reader expects them: "ResNet-50, fused, attention", 64.2 %."""

import re

import pandas as pd

from fer_utils.data import EMOTIONS
from fer_utils.report import format_cell, is_p_value

# Parts of code names, as regular expressions; a part that is not listed stays as it is.
PHRASES = {
    r"baseline_cnn": "baseline CNN",
    r"(\d+)_percent_of_labels": r"\1 % of the labels",
    r"no_augmentation": "no augmentation",
    r"no_duplicates": "without copies",
    r"fine_tuned": "fine-tuned",
    r"local_global": "local-global",
    r"best_pair": "best pair",
    r"mixup_cutmix": "mixup and cutmix",
    r"resnet(\d+)": r"ResNet-\1",
    r"resnet": "ResNet",
    r"vgg(\d+)": r"VGG-\1",
    r"efficientnet": "EfficientNet-B0",
    r"cnn": "CNN",
    r"gradcam": "Grad-CAM",
    r"gflops": "GFLOPs",
    r"mbconv": "MBConv",
    r"crp": "flip-crop-rotate",
    r"original_pair": "original pair",
    r"original": "original recipe",
    r"scratch": "from scratch",
    r"whole": "whole image",
}
# Columns whose names are no plain words.
COLUMNS = {
    "accuracy_no_duplicates": "accuracy without copies",
    "accuracy_sd": "sd over seeds",
    "auc": "area under the curve",
    "ece": "calibration error",
    "gmacs": "GMACs",
    "macro_f1": "macro-F1",
    "macs": "multiply-adds",
    "mmacs": "million multiply-adds",
    "mcnemar_p": "p (McNemar)",
    "nme": "NME",
    "p_holm": "p (Holm)",
    "p_value": "p",
    "params": "parameters",
    "smallest_p": "smallest possible p",
}
NETWORK = re.compile(r"ResNet|VGG-|CNN|EfficientNet|ensemble")
NAME_COLUMNS = {"model", "network", "variant", "against", "version", "two_models"}
SHARES = re.compile(
    r"(^|_)(accuracy|recall|share|rate|agreement|above_zero|claimed|fitted|first_epoch|scratch|quarter|ece|failures|saved)"
    r"(_|$)|^(eyes|nose|mouth)_(area|ceiling)$"
)
MEASURES = ("accuracy", "recall", "share", "rate", "val_accuracy")  # to which ci_low and ci_high can belong
DIFFERENCES = re.compile(r"^(mean|gap|difference)(_no_duplicates)?$")
SPREADS = ("sd", "accuracy_sd")
INTERVAL_END = re.compile(r"_?(ci_)?(low|high)$")
# Tables whose shares stand under the names of emotions or regions.
SHARE_TABLES = {"06_recall": EMOTIONS, "08_methods": ("eyes", "nose", "mouth", "rest of face", "background")}
CODE_NAME = re.compile(r"\b(?!x86_64)[a-z0-9]+(?:_[a-z0-9]+)+\b")


def percent(share: float) -> str:
    """Format a share: 0.642 -> "64.2 %"."""
    return f"{100 * share:.1f} %"


def readable_name(name: str) -> str:
    """Return the name of a model in words: "resnet50_fused" -> "ResNet-50, fused"."""
    words = readable_words(name)
    return words[:1].upper() + words[1:]


def readable_title(name: str) -> str:
    """Return the name of a figure, a table or a notebook: "05_learning_curves_ours" -> "Learning curves ours"."""
    return readable_name(name).replace(", ", " ")


def readable_words(name: str) -> str:
    """Do the same within a sentence. What follows the network, or the word ensemble, is set off by commas."""
    if name in COLUMNS:
        return COLUMNS[name]
    pattern = rf"(?:{'|'.join(PHRASES)})(?=_|$)|[^_]+"
    parts = [_translate(match[0]) for match in re.finditer(pattern, re.sub(r"^\d\d_", "", name))]
    last = next((i for i, part in enumerate(parts) if NETWORK.search(part)), len(parts) - 1)
    return ", ".join([" ".join(parts[: last + 1]), *parts[last + 1 :]])


def _translate(part: str) -> str:
    for pattern, words in PHRASES.items():
        match = re.fullmatch(pattern, part)
        if match:
            return match.expand(words)
    return part


def readable_text(text: str) -> str:
    """Replace the code names in a sentence, such as a caption, by words."""
    return CODE_NAME.sub(lambda match: readable_words(match[0]), text)


def readable_column(column: str) -> str:
    """Return the head of a column in words: "val_accuracy" -> "val accuracy"."""
    return readable_words(column).replace(", ", " ")


# --- Tables -----------------------------------------------------------------------------------------------------------


def readable_table(table: pd.DataFrame, digits: int, name: str = "") -> pd.DataFrame:
    """Return a table as texts: names in words, shares in percent, differences in points, intervals in one column.

    digits: decimals of other numbers. name: of the published table.
    """
    columns: dict[str, list[str]] = {}
    for column in table:
        other = _upper_end(str(column), table)
        if other:
            low, high = (_format_column(table, end, digits, name)[1] for end in (column, other))
            head = _interval_head(str(column), _format_column(table, column, digits, name)[0])
            columns[head] = ["-" if "-" == a == b else f"{a} to {b}" for a, b in zip(low, high, strict=True)]
        elif not _lower_end(str(column), table):
            head, texts = _format_column(table, column, digits, name)
            columns[head] = texts
    return pd.DataFrame(columns, index=table.index)


def _upper_end(column: str, table: pd.DataFrame) -> str | None:
    """Return the column with the upper ends of the intervals whose lower ends stand in `column`."""
    other = re.sub(r"low$", "high", column)
    return other if other != column and other in table else None


def _lower_end(column: str, table: pd.DataFrame) -> bool:
    other = re.sub(r"high$", "low", column)
    return other != column and other in table


def _interval_head(column: str, head: str) -> str:
    """Return the head of a column of intervals: "ci_low" -> "95 % interval"."""
    owner = INTERVAL_END.sub("", column)
    unit = re.search(r" \((%|points)\)$", head)
    return (f"{readable_column(owner)}: " if owner else "") + "95 % interval" + (unit[0] if unit else "")


def _format_column(table: pd.DataFrame, column: str, digits: int, name: str) -> tuple[str, list[str]]:
    """Return the head and the texts of one column."""
    values, head = table[column], readable_column(str(column))
    unit = _unit_of(table, column, name)
    if unit == "%":
        decimals = 2 if values.between(0, 0.0005, inclusive="neither").any() else 1  # 0.03 % must not read 0.0
        return f"{head} (%)", [format_cell(100 * value, decimals) for value in values]
    if unit == "points":
        return f"{head} (points)", ["-" if pd.isna(value) else f"{100 * value:+.2f}" for value in values]
    smallest = 10.0**-digits if is_p_value(str(column)) else None
    texts = [format_cell(value, digits, smallest) for value in values]
    if column == "notebook":
        return head, [text[:2] for text in texts]
    if column in NAME_COLUMNS:
        return head, [
            readable_name(text) if re.fullmatch(r"[a-z0-9_]+", text) else readable_text(text) for text in texts
        ]
    return head, [readable_text(text) for text in texts]


def _unit_of(table: pd.DataFrame, column: str, name: str) -> str | None:
    """Return "%" for a column of shares, "points" for differences of shares, None for other columns."""
    if INTERVAL_END.search(column):
        owner = _owner_of_interval(column, table)
        return _unit_of(table, owner, name) if owner else None
    values = table[column].dropna()
    if not pd.api.types.is_float_dtype(values) or values.abs().max() > 1:
        return None
    has_measure = any(measure in table for measure in MEASURES)
    if has_measure and DIFFERENCES.search(column):
        return "points"
    is_share = SHARES.search(column) or column in SHARE_TABLES.get(name, ()) or (has_measure and column in SPREADS)
    return "%" if is_share else None


def _owner_of_interval(column: str, table: pd.DataFrame) -> str | None:
    """Return the column whose interval ends in `column`; None when there is none.

    "difference_low" belongs to "difference", "fear_ci_low" to "fear_recall", and "ci_low" to a difference or a share.
    """
    owner = INTERVAL_END.sub("", column)
    candidates = (owner, f"{owner}_recall", "mean") if owner else ("mean", *MEASURES)
    return next((candidate for candidate in candidates if candidate in table), None)
