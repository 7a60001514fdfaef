"""The front page of the report: headline, findings, how sure they are, and the main claims as cards."""

from pathlib import Path

import pandas as pd

from fer_utils.pipeline.page.names import percent, readable_text, readable_words
from fer_utils.pipeline.page.pictures import SHARP_DPI, encode_picture
from fer_utils.pipeline.page.story import FINDINGS, MAIN_CLAIMS, Finding
from fer_utils.pipeline.page.tables import find_chosen, format_claims
from fer_utils.report import CLAIM_PROJECTS

# Which first words of a verdict have which color; all others say that something is left open.
VERDICT_KINDS = {
    "yes": ("confirmed", "consistent", "smaller", "measured higher", "fewer"),
    "no": ("not confirmed", "wrong", "contradicts"),
    "open": ("not tested",),
}


def make_headline(summary: pd.DataFrame) -> str:
    """Return two sentences on how many models there are and on the best one; "" when there is none.

    Best is what was chosen on val: the most accurate single model there, or the ensemble that a notebook chose there.
    """
    chosen = find_chosen(summary)
    if chosen.empty:
        return ""
    best = chosen.loc[chosen.accuracy.idxmax()]
    return (
        f"{(summary.split == 'test').sum()} models were evaluated. The best of those that were chosen on"
        f" validation data is right on {percent(best.accuracy)} of {best.n:,} test images (95 % interval"
        f" {percent(best.ci_low)} to {percent(best.ci_high)}), and on {percent(best.accuracy_no_duplicates)} of"
        f" those without a copy in the training split: {readable_words(best.model)}, notebook {best.notebook[:2]}."
    )


def gather_findings(reports: Path, published: dict[str, dict]) -> list[dict]:
    """Return picture, sentence and link of every finding whose figure and numbers are published."""
    figures = {
        artifact["name"]: artifact | {"notebook": name}
        for name, manifest in published.items()
        for artifact in manifest["artifacts"]
        if artifact["kind"] == "figure"
    }
    return [
        figures[finding.figure]
        | encode_picture(reports / "figures" / f"{finding.figure}.png", SHARP_DPI)
        | {"sentence": sentence}
        for finding in FINDINGS
        if finding.figure in figures and (sentence := tell_finding(finding, reports))
    ]


def tell_finding(finding: Finding, reports: Path) -> str:
    """Return the sentence of a finding; "" when its file is missing or was written by older or newer code."""
    source = reports / finding.source
    if not source.is_file():
        return ""
    try:
        return finding.tell(pd.read_csv(source))
    except (AttributeError, IndexError, KeyError):  # a column or row that this sentence needs is not there
        return ""


def describe_certainty(summary: pd.DataFrame, manifests: list[dict], provenance: dict) -> list[tuple[str, str]]:
    """Return four lines on how sure and how reproducible the numbers are: a term and what it stands for."""
    test = summary[summary.split == "test"]
    n, seeds = (_range_of(test[column]) for column in ("n", "seeds"))
    stages = provenance.get("stages", {}).values()
    profiles, devices = (sorted({manifest.get(key, "-") for manifest in manifests}) for key in ("profile", "device"))
    commits = {stage["commit"][:7] for stage in stages if stage.get("commit")}
    dates = sorted(stage["finished"][:10] for stage in stages if stage.get("finished"))
    return [
        ("Images", f"n = {n} test images for every model. Intervals are 95 % bootstrap intervals over these images."),
        ("Seeds", f"{seeds} for each model. With fewer than six, no difference between methods can be shown."),
        (
            "Copies",
            "Every accuracy is also given without the test images that have an exact copy in the training split.",
        ),
        (
            "Run",
            f"Profile {', '.join(profiles)}; {' and '.join(devices)}; {_range_of(pd.Series(dates))}; from"
            f" {len(commits)} commit{'s' if len(commits) != 1 else ''}. ./run_all.sh makes every result again.",
        ),
    ]


def _range_of(values: pd.Series) -> str:
    """Return "3,589", or "1 to 6" when the values differ."""
    ends = [values.min(), values.max()] if len(values) else ["-"]
    return " to ".join(dict.fromkeys(end if isinstance(end, str) else f"{end:,}" for end in ends))


def make_cards(claims: pd.DataFrame) -> list[dict]:
    """Return the main claims as cards: claim, claimed, measured, verdict and conditions."""
    main = claims[claims.id.isin(MAIN_CLAIMS)]
    cards = []
    for project, table in format_claims(main).items():
        for card in table.to_dict("records"):
            verdict, _, rest = card["verdict"].replace(": ", "; ", 1).partition("; ")
            cards.append(card | {"project": CLAIM_PROJECTS[project].title, "verdict": verdict, "rest": rest})
    texts = ("claim", "conditions", "rest")
    return [
        card | {"kind": _kind_of(card["verdict"])} | {key: readable_text(card[key]) for key in texts} for card in cards
    ]


def _kind_of(verdict: str) -> str:
    return next((kind for kind, words in VERDICT_KINDS.items() if verdict.startswith(words)), "partly")
