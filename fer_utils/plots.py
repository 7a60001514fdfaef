"""Draw the figures that several notebooks need. Each function returns the Figure; none saves or shows it."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from fer_utils.data.constants import EMOTIONS
from fer_utils.metrics import pareto_front

# One color per emotion, in the order of FER2013; color-blind readers can tell them apart (Okabe & Ito 2008).
COLORS = dict(zip(EMOTIONS, ["#D55E00", "#009E73", "#CC79A7", "#E69F00", "#0072B2", "#56B4E9", "#595959"], strict=True))


def use_style() -> None:
    """Set the style of all figures; called once at the top of each notebook."""
    sns.set_theme(context="notebook", style="whitegrid", palette=list(COLORS.values()), font="DejaVu Sans")
    plt.rcParams.update(
        {"figure.dpi": 96, "savefig.dpi": 144, "axes.titlesize": 12, "figure.constrained_layout.use": True}
    )


def plot_faces(images: np.ndarray, titles: list[str] | None = None, columns: int = 7, size: float = 1.25) -> Figure:
    """Draw a grid of faces. images: (n,48,48) or (n,3,H,W), 0 to 255. titles: n short texts; \\n starts a new line."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    lines = 1 + max(title.count("\n") for title in titles) if titles else 0
    room = 0.05 + 0.15 * lines  # inches above each row
    height = rows * (size + room)
    # Fixed positions: a layout engine would take longer than all the rest, and explore panels must be fast.
    places = {"left": 0, "right": 1, "bottom": 0, "top": 1 - room / height, "hspace": room / size, "wspace": 0.05}
    fig, axes = plt.subplots(
        rows, columns, figsize=(columns * size, height), squeeze=False, layout="none", gridspec_kw=places
    )
    for ax in axes.flat:
        ax.axis("off")
    for i, (ax, image) in enumerate(zip(axes.flat, images, strict=False)):
        ax.imshow(image.transpose(1, 2, 0) if image.ndim == 3 else image, cmap="gray", vmin=0, vmax=255)
        if titles:
            ax.set_title(titles[i], fontsize=8, y=1, pad=3, parse_math=False)  # "$" may be part of a name
    return fig


def plot_landmarks(
    images: np.ndarray, points: np.ndarray, titles: list[str] | None = None, columns: int = 7, size: float = 1.25
) -> Figure:
    """Draw a grid of faces with their landmarks, cyan dots on the eyes and orange dots on the lip corners.

    images: (n,48,48) on the scale 0-255. points: (n,4,2) in [0,1]; nan is not drawn. The rest is as in `plot_faces`.
    """
    fig = plot_faces(images, titles, columns, size)
    for ax, image, four in zip(fig.axes, images, points, strict=False):
        x, y = (four * image.shape[::-1] - 0.5).T  # in matplotlib, 0 is the center of the first pixel
        ax.scatter(x, y, s=9 * size, c=["#00E5FF"] * 2 + ["#FF9500"] * 2, edgecolors="black", linewidths=0.5)
        ax.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
    return fig


def plot_maps(
    images: np.ndarray,
    maps: Sequence[np.ndarray],
    scale: tuple[float, float],
    label: str,
    titles: list[str] | None = None,
    columns: int = 7,
    size: float = 1.25,
    colors: str = "viridis",
) -> Figure:
    """Draw a grid of faces under heat maps with a common color scale, which is shown beside them.

    maps: n maps (h,w), drawn without interpolation; nan is not drawn. scale: lowest and highest value of the color
    scale. label: title of the color scale. colors: name of the color map. The rest is as in `plot_faces`.
    """
    fig = plot_faces(images, titles, columns, size)
    fig.axes[0].get_gridspec().update(hspace=None)
    fig.set_layout_engine("constrained")  # makes room for the color scale and the titles
    corners = (-0.5, images.shape[2] - 0.5, images.shape[1] - 0.5, -0.5)
    for ax, heat in zip(fig.axes, maps, strict=False):
        layer = ax.imshow(heat, cmap=colors, vmin=scale[0], vmax=scale[1], alpha=0.6, extent=corners)
    fig.colorbar(layer, ax=fig.axes, label=label, fraction=0.03)
    return fig


def plot_confusion_matrix(counts: pd.DataFrame, ax: Axes | None = None) -> Figure:
    """Draw a row-normalized confusion matrix with counts. counts: (7,7), rows are labels, columns predictions."""
    ax = ax or plt.subplots(figsize=(6.4, 5.4))[1]
    totals = counts.sum(axis=1)
    shares = counts.div(totals.clip(lower=1), axis=0)
    texts = np.array(
        [
            [f"{s:.0%}\n{c}" for s, c in zip(*pair, strict=True)]
            for pair in zip(shares.values, counts.values, strict=True)
        ]
    )
    sns.heatmap(shares, annot=texts, fmt="", cmap="Blues", vmin=0, vmax=1, ax=ax, annot_kws={"fontsize": 8},
                cbar_kws={"label": "share of the labeled class"})  # fmt: skip
    ax.set(xlabel="predicted", ylabel="labeled (n)")
    ax.set_yticklabels([f"{name} ({n})" for name, n in totals.items()], rotation=0)
    ax.set_xticklabels(counts.columns, rotation=40, ha="right")
    return ax.figure


def plot_recall(recalls: pd.DataFrame, ax: Axes | None = None) -> Figure:
    """Draw the recall of each emotion with its 95 % interval; the dashed line is accuracy.

    recalls: from metrics.per_class_recall.
    """
    ax = ax or plt.subplots(figsize=(7, 3.6))[1]
    overall = recalls.loc[recalls.emotion == "all", "recall"].item()
    rows = recalls[recalls.emotion != "all"]
    errors = np.clip([rows.recall - rows.ci_low, rows.ci_high - rows.recall], 0, None)
    ax.bar(rows.emotion, rows.recall, yerr=errors, capsize=4, color=[COLORS[e] for e in rows.emotion])
    ax.axhline(overall, color="black", linestyle="--", linewidth=1)
    ax.annotate(f"all\n{overall:.1%}", (1.01, overall), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    ax.set(ylim=(0, 1), ylabel="recall (95 % interval)")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set_xticks(range(len(rows)), [f"{e}\nn={n}" for e, n in zip(rows.emotion, rows.n, strict=True)])
    ax.grid(axis="x", visible=False)
    return ax.figure


def plot_reliability(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw reliability diagrams, one panel per name: accuracy over confidence, and below it the number of images.

    tables: from metrics.reliability. On the dashed line accuracy equals confidence.
    """
    fig, axes = plt.subplots(
        2, len(tables), figsize=(4.2 * len(tables), 4.6), height_ratios=(3, 1), sharex=True, sharey="row", squeeze=False
    )
    for (name, table), (top, bottom) in zip(tables.items(), axes.T, strict=True):
        middle, width = (table.low + table.high) / 2, table.high - table.low
        top.bar(middle, table.accuracy, width, color="#56B4E9", edgecolor="white", label="accuracy")
        top.plot(table.confidence, table.accuracy, "o-", color="#D55E00", markersize=4, label="at the mean confidence")
        top.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="perfect calibration")
        top.set(title=name, xlim=(0, 1), ylim=(0, 1))
        bottom.bar(middle, table.n, width, color="#595959", edgecolor="white")
        bottom.set(xlabel="confidence")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("images")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(handles), fontsize=8)
    return fig


def plot_learning_curves(histories: dict[str, pd.DataFrame], best_epochs: dict[str, int]) -> Figure:
    """Draw loss and accuracy over epochs, train (dotted) and val (solid), one color per run, a dot at the best epoch.

    best_epochs: counted from 1.
    """
    fig, axes = plt.subplots(1, 2, figsize=(10, 4.3))
    for (label, history), color in zip(histories.items(), ["#0072B2", "#D55E00", "#009E73", "#CC79A7"], strict=False):
        for ax, what in zip(axes, ("loss", "accuracy"), strict=True):
            ax.plot(history.epoch, history[f"train_{what}"], ":", color=color, label=f"{label}: train")
            ax.plot(history.epoch, history[f"val_{what}"], "-", color=color, label=f"{label}: val")
            best = history[history.epoch == best_epochs[label]]
            ax.plot(best.epoch, best[f"val_{what}"], "o", color=color, label=f"{label}: chosen epoch")
            ax.set(xlabel="epoch", ylabel={"loss": "cross-entropy", "accuracy": "accuracy"}[what])
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1].yaxis.set_major_formatter(PercentFormatter(1))
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(histories), fontsize=8)
    return fig


def plot_pareto(table: pd.DataFrame, ax: Axes | None = None) -> Figure:
    """Draw accuracy on test against cost with intervals, one color per kind, and the Pareto front with its names.

    table: one row per model with the columns kind, model, gmacs, accuracy, ci_low and ci_high.
    """
    ax = ax or plt.subplots(figsize=(10, 5.6))[1]
    colors = ("#595959", "#0072B2", "#D55E00", "#009E73", "#CC79A7")
    for (kind, part), color in zip(table.groupby("kind", sort=False), colors, strict=False):
        bars = 100 * np.clip([part.accuracy - part.ci_low, part.ci_high - part.accuracy], 0, None)
        look = {"fmt": "o", "color": color, "elinewidth": 0.6, "markersize": 5, "label": kind}
        ax.errorbar(part.gmacs, 100 * part.accuracy, bars, **look)
    front = pareto_front(table)
    x, y = front.gmacs, 100 * front.accuracy
    ax.plot(x, y, drawstyle="steps-post", color="black", lw=1, label="Pareto front")
    for row in front.itertuples():
        # up and to the left of a point of the front there is no other point
        place = {"xytext": (-5, 3), "textcoords": "offset points", "ha": "right", "fontsize": 8}
        ax.annotate(row.model, (row.gmacs, 100 * row.accuracy), **place)
    ax.set(xscale="log", xlabel="GMACs per image (log)", ylabel="accuracy on test (%)")
    ax.set_xlim(left=0.3 * table.gmacs.min())  # room for the first name
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())  # its labels would hide the others
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return ax.figure
