"""The chart of all models: accuracy on test over multiply-adds, with 95 % intervals, as SVG."""

import math
from collections.abc import Callable

import pandas as pd
from jinja2 import Environment

from fer_utils.pipeline.page.names import percent, readable_name

WIDTH, HEIGHT = 960, 460  # of the drawing, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 40, 48  # margins
GAP = 13  # smallest distance between two marks: models of equal cost stand side by side
# Marks differ in shape as well as in color; drawn around (0, 0).
SHAPES = (
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z",  # circle
    "M-4.6,-4.6h9.2v9.2h-9.2z",  # square
    "M0,-6.2L6.2,0L0,6.2L-6.2,0z",  # diamond
    "M0,-6L5.8,4.4H-5.8z",  # triangle
    "M0,6L5.8,-4.4H-5.8z",  # triangle, pointing down
    "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",  # cross
    "M0,-6.6L5.7,-3.3V3.3L0,6.6L-5.7,3.3V-3.3z",  # hexagon
)


def draw_models(environment: Environment, summary: pd.DataFrame) -> str:
    """Return the chart of every model's accuracy on test as SVG; "" when there are no models.

    summary: rows of summary.csv. The best model of each notebook is labeled; a pointer shows the facts of the others.
    """
    rows = summary[(summary.split == "test") & ~summary.model.str.endswith("_on_rafdb") & summary.gmacs.gt(0)]
    if rows.empty:
        return ""
    rows = rows.sort_values(["gmacs", "notebook"], kind="stable").reset_index(drop=True)
    x_of, x_ticks = _scale_cost(rows.gmacs)
    y_of, y_ticks = _scale_accuracy(rows)
    places = spread([x_of(cost) for cost in rows.gmacs], GAP)
    styles = {notebook: i % len(SHAPES) for i, notebook in enumerate(sorted(rows.notebook.unique()))}
    best = set(rows.groupby("notebook").accuracy.idxmax())
    marks = [
        _make_mark(row, place, y_of, styles, row.Index in best)
        for row, place in zip(rows.itertuples(), places, strict=True)
    ]
    legend = [{"text": notebook[:2], "style": style, "shape": SHAPES[style]} for notebook, style in styles.items()]
    frame = {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
    }
    return environment.get_template("models.svg.j2").render(
        marks=marks, legend=legend, x_ticks=x_ticks, y_ticks=y_ticks, frame=frame
    )


def _scale_cost(costs: pd.Series) -> tuple:
    """Return a function from GMACs to x, on a logarithmic axis, and the ticks of that axis."""
    low, high = math.log10(costs.min() / 1.6), math.log10(costs.max() * 1.25)

    def x_of(cost: float) -> float:
        return LEFT + (math.log10(cost) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    steps = [step * 10.0**power for power in range(-4, 4) for step in (1, 2, 5)]
    return x_of, [(f"{step:g}", x_of(step)) for step in steps if low <= math.log10(step) <= high]


def _scale_accuracy(rows: pd.DataFrame) -> tuple:
    """Return a function from accuracy to y, and the ticks of that axis, every 10 %."""
    low, high = math.floor(10 * rows.ci_low.min()) / 10, math.ceil(20 * rows.ci_high.max()) / 20

    def y_of(accuracy: float) -> float:
        return HEIGHT - BOTTOM - (accuracy - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    ticks = [tick / 10 for tick in range(11) if low <= tick / 10 <= high + 1e-9]
    return y_of, [(f"{tick:.0%}", y_of(tick)) for tick in ticks]


def spread(places: list[float], gap: float) -> list[float]:
    """Move sorted places apart until neighbors are at least `gap` apart; a crowd keeps its middle."""
    crowds: list[list[float]] = []
    for place in places:
        crowds.append([place])
        while len(crowds) > 1 and _start(crowds[-1], gap) - _end(crowds[-2], gap) < gap:
            crowds[-2:] = [crowds[-2] + crowds[-1]]
    return [_start(crowd, gap) + gap * i for crowd in crowds for i in range(len(crowd))]


def _start(crowd: list[float], gap: float) -> float:
    return sum(crowd) / len(crowd) - gap * (len(crowd) - 1) / 2


def _end(crowd: list[float], gap: float) -> float:
    return _start(crowd, gap) + gap * (len(crowd) - 1)


def _make_mark(row: tuple, x: float, y_of: Callable[[float], float], styles: dict[str, int], is_labeled: bool) -> dict:
    """Return what the template draws for one model."""
    name = readable_name(row.model)
    is_right = x > WIDTH * 0.6  # its label stands to the left, where there is room
    return {
        **{"x": x, "y": y_of(row.accuracy), "low": y_of(row.ci_low), "high": y_of(row.ci_high)},
        **{"style": styles[row.notebook], "shape": SHAPES[styles[row.notebook]]},
        "title": f"{name} (notebook {row.notebook[:2]}): {percent(row.accuracy)}, 95 % interval"
        f" {percent(row.ci_low)} to {percent(row.ci_high)}, n = {row.n:,}, seeds: {row.seeds}, {row.gmacs:.3g} GMACs",
        "label": name if is_labeled else "",
        "anchor": "end" if is_right else "start",
        "label_x": x - 10 if is_right else x + 10,
    }
