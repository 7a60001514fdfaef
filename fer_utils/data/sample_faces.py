"""Render the embedded sample: about a thousand labeled 48x48 faces from one photograph, without the internet.

The photograph is the portrait of Rear Admiral Grace Hopper that comes with matplotlib (`grace_hopper.jpg`, an official
US Navy picture in the public domain). `assets/` holds MediaPipe's face mesh of it (Kartynnik et al. 2019), so MediaPipe
itself is not needed here. Expressions are built from the action units of the Facial Action Coding System (Ekman &
Friesen 1978). A unit moves a few groups of mesh points, the points between them follow smoothly, and the picture is
warped triangle by triangle. Proportions, pose, light and noise differ from face to face.

The sample is for tests and for a first run of the notebooks. It does not show how well a model recognizes real faces.
On one machine the same seed gives the same bytes. With other versions of NumPy or OpenCV, pixels may differ by one gray
level.
"""

import json
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.cbook import get_sample_data
from matplotlib.tri import Triangulation

from fer_utils.data.constants import IMAGE_SIZE
from fer_utils.paths import ASSETS

CANVAS = 4 * IMAGE_SIZE  # pixels of a face while it is drawn
CORNER, CROP = np.array([89, 58]), 350  # upper left corner and side of the part of the portrait in use, in pixels
MESH_FILE = ASSETS / "grace_hopper_mesh.csv"  # x, y, z in pixels of the portrait
STROKES_FILE = ASSETS / "grace_hopper_strokes.json"  # strokes to retouch: lists of [width, corners], in the same pixels

# Expression: its action units and their strength (after the prototypes of Ekman & Friesen).
ARCHETYPES = {
    "angry": {"AU4": 1.6, "AU5": 0.3, "AU7": 0.8, "AU24": 1.0},
    "disgust": {"AU4": 0.3, "AU7": 0.6, "AU9": 1.0, "AU10": 1.0, "AU15": 0.4, "AU17": 1.0},
    "fear": {"AU1": 1.0, "AU2": 0.5, "AU4": 0.3, "AU5": 1.0, "AU20": 1.0, "AU25": 1.0},
    "happy": {"AU6": 1.0, "AU12": 1.1, "AU25": 1.2},
    "sad": {"AU1": 1.0, "AU4": 0.3, "AU15": 1.0, "AU17": 0.4},
    "surprise": {"AU1": 1.0, "AU2": 1.0, "AU5": 1.0, "AU26": 1.0},
    "neutral": {"AU12": 0.3},  # the lip corners in the portrait hang a little
}
# Action unit: (group of points, outwards, downwards), in fractions of the distance between the eyes.
ACTION_UNITS = {
    "AU1": [("brow_inner", 0.00, -0.14), ("brow_mid", 0.00, -0.05)],  # inner brow raiser
    "AU2": [("brow_outer", 0.00, -0.12), ("brow_mid", 0.00, -0.10)],  # outer brow raiser
    "AU4": [("brow_inner", -0.06, 0.11), ("brow_mid", -0.03, 0.06)],  # brow lowerer
    "AU5": [("lid_upper", 0.00, -0.06)],  # upper lid raiser
    "AU6": [("cheek", 0.00, -0.08), ("lid_lower", 0.00, -0.03)],  # cheek raiser
    "AU7": [("lid_upper", 0.00, 0.03), ("lid_lower", 0.00, -0.03)],  # lid tightener
    "AU9": [("nose_wing", 0.03, -0.08), ("brow_inner", -0.02, 0.08), ("cheek", 0.00, -0.05)],  # nose wrinkler
    "AU10": [("lip_upper", 0.00, -0.10)],  # upper lip raiser
    "AU12": [("lip_corner", 0.15, -0.18), ("cheek", 0.03, -0.04)],  # lip corner puller
    "AU15": [("lip_corner", 0.02, 0.15), ("lip_lower", 0.00, 0.02)],  # lip corner depressor
    "AU17": [("lip_lower", 0.00, -0.05), ("lip_upper", 0.00, -0.02), ("chin", 0.00, -0.05)],  # chin raiser
    "AU20": [("lip_corner", 0.14, 0.05)],  # lip stretcher
    "AU24": [("rim_upper", 0.00, 0.03), ("rim_lower", 0.00, -0.06), ("lip_corner", -0.04, 0.00)],  # lip pressor
    "AU25": [("lip_lower", 0.00, 0.10), ("lip_upper", 0.00, -0.04)],  # lips part
    # jaw drop
    "AU26": [("lip_lower", 0.00, 0.32), ("lip_corner", -0.10, 0.08), ("chin", 0.00, 0.26), ("jaw", 0.00, 0.12)],
}
# Mesh points that move as one: (on the left of the picture, on the right).
GROUPS = {
    "brow_inner": ([55, 107, 65, 66], [285, 336, 295, 296]),
    "brow_mid": ([52, 105], [282, 334]),
    "brow_outer": ([46, 53, 63, 70], [276, 283, 293, 300]),
    "lid_upper": ([160, 159, 158], [387, 386, 385]),
    "lid_lower": ([144, 145, 153], [373, 374, 380]),
    "cheek": ([50, 101, 36, 205, 118, 117], [280, 330, 266, 425, 347, 346]),
    "nose_wing": ([129, 64, 98, 48, 102, 49], [358, 294, 327, 278, 331, 279]),
    "chin": ([152, 148, 176, 175, 171, 199, 208], [152, 377, 400, 175, 396, 199, 428]),
    "jaw": ([149, 150, 136], [378, 379, 365]),
    "lip_corner": ([61, 76, 62, 78], [291, 306, 292, 308]),
}
# Rows of lip points, from the midline to the last point before the corner; the row where the lips meet comes first.
LIPS = {
    "upper": (
        [[13, 82, 81, 80, 191], [12, 38, 41, 42, 183], [11, 72, 73, 74, 184], [0, 37, 39, 40, 185]],
        [[13, 312, 311, 310, 415], [12, 268, 271, 272, 407], [11, 302, 303, 304, 408], [0, 267, 269, 270, 409]],
    ),
    "lower": (
        [[14, 87, 178, 88, 95], [15, 86, 179, 89, 96], [16, 85, 180, 90, 77], [17, 84, 181, 91, 146]],
        [[14, 317, 402, 318, 324], [15, 316, 403, 319, 325], [16, 315, 404, 320, 307], [17, 314, 405, 321, 375]],
    ),
}
# Points that no expression moves: bridge and tip of the nose, corners of the eyes, hairline, temples.
STILL = [168, 6, 197, 195, 5, 4, 1, 19, 94, 2, 33, 133, 263, 362, 10, 109, 67, 103, 338, 297, 332]
STILL += [127, 234, 93, 132, 356, 454, 323, 361]

# Shapes as (upper edge, lower edge), both from left to right.
MOUTH = ([78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308], [78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308])
LIP_RIMS = ([61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291], [61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291])
EYES = (
    ([33, 246, 161, 160, 159, 158, 157, 173, 133], [33, 7, 163, 144, 145, 153, 154, 155, 133]),
    ([362, 398, 384, 385, 386, 387, 388, 466, 263], [362, 382, 381, 380, 374, 373, 390, 249, 263]),
)
BROWS = (([70, 63, 105, 66, 107], [46, 53, 52, 65, 55]), ([336, 296, 334, 293, 300], [285, 295, 282, 283, 276]))
EYE_CORNERS, LIP_CORNERS, NOSE_TIP = ([33, 133], [362, 263]), [61, 291], 1
IRIS_CENTRES, IRIS_POINTS = (468, 473), slice(468, 478)


@dataclass(frozen=True)
class SampleFaces:
    """N rendered faces with their labels and landmarks."""

    images: np.ndarray  # (N,48,48) uint8
    labels: np.ndarray  # (N,) int64: positions in ARCHETYPES
    split: np.ndarray  # (N,) int8: 0 train, 1 val, 2 test
    # (N,4,2) float32, x and y in [0,1] of width and height: left eye center, right eye center, left lip corner, right
    # lip corner. "Left" is the left side of the image.
    landmarks: np.ndarray


@dataclass(frozen=True)
class Portrait:
    """The parts that all faces share: the mesh, its movements, and the layers of the picture, (H,W) float32 each."""

    mesh: np.ndarray  # (P,3) in pixels of the layers; the last rows are a frame around the head
    eye_distance: float  # pixels
    moves: np.ndarray  # (U,2,P,2) in pixels: how far each action unit moves each point, per side of the face
    bumps: np.ndarray  # (P,B) smooth bumps; random sums of them vary the proportions
    skin: np.ndarray  # gray levels without glasses and folds
    folds: np.ndarray  # gray levels to add
    brows: np.ndarray  # mask in [0,1]
    lips: np.ndarray  # mask in [0,1]
    creases: dict[str, np.ndarray]  # action unit -> mask in [0,1]


def make_sample(n_per_class: int = 144, seed: int = 2013) -> SampleFaces:
    """Draw `n_per_class` faces of each of the seven expressions and split them; 144 give 100 train, 22 val, 22 test.

    Rows are ordered train, val, test, and by class inside a split. ValueError if `n_per_class` is below 4.
    """
    if n_per_class < 4:
        raise ValueError(f"n_per_class is {n_per_class}: at least 4 faces per class are needed to fill every split")
    portrait = load_portrait()
    rng = np.random.default_rng(seed)
    faces = [_draw_face(portrait, units, rng) for units in ARCHETYPES.values() for _ in range(n_per_class)]
    held_out = round(n_per_class * 22 / 144)
    labels = np.repeat(np.arange(len(ARCHETYPES)), n_per_class)
    split = np.tile(np.repeat([0, 1, 2], [n_per_class - 2 * held_out, held_out, held_out]), len(ARCHETYPES))
    order = np.argsort(split, kind="stable")
    images, landmarks = (np.stack(part)[order] for part in zip(*faces, strict=True))
    return SampleFaces(images, labels[order].astype(np.int64), split[order].astype(np.int8), landmarks)


# --- The portrait, prepared once for all faces ------------------------------------------------------------------------


def load_portrait() -> Portrait:
    """Read the portrait and its mesh; retouch the portrait and prepare the movements of the mesh.

    The glasses are painted out so that the brows can move. The folds beside nose and mouth become a layer of their own:
    they are faint in a relaxed face and strong when the face smiles or raises its upper lip.
    """
    strokes = json.loads(STROKES_FILE.read_text())
    face = np.loadtxt(MESH_FILE, delimiter=",", skiprows=1)[:, 1:] - [*CORNER, 0]
    mesh = np.vstack([face, _frame(face)])
    points = mesh[:, :2]
    left, right = (points[corners].mean(0) for corners in EYE_CORNERS)
    eye_distance = float(np.linalg.norm(right - left))
    bare = _paint_out(_read_portrait(), strokes["spectacles"])
    skin = _paint_out(bare, strokes["folds"])
    return Portrait(
        mesh=mesh,
        eye_distance=eye_distance,
        moves=_unit_moves(points, len(face)) * eye_distance,
        bumps=_bumps(points, eye_distance),
        skin=skin.astype(np.float32),
        folds=cv2.GaussianBlur(bare.astype(np.float32) - skin, (0, 0), 0.7),
        brows=np.sum([_soft_shape(CROP, points[upper], points[lower], 2.0) for upper, lower in BROWS], axis=0),
        lips=_soft_shape(CROP, points[LIP_RIMS[0]], points[LIP_RIMS[1]], 1.5),
        creases={unit: _soften(_draw_strokes(lines), 1.2) for unit, lines in strokes["creases"].items()},
    )


def _read_portrait() -> np.ndarray:
    path = get_sample_data("grace_hopper.jpg", asfileobj=False)
    # not cv2.imread: on Windows it cannot open every path
    portrait = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)
    return portrait[CORNER[1] :, CORNER[0] :][:CROP, :CROP]


def _frame(face: np.ndarray) -> np.ndarray:
    """Return points (24,3) on the border of the crop, as deep as the ears; they hold the background in place."""
    side = np.linspace(0, CROP, 7)
    border = np.array([(x, y) for x in side for y in side if {x, y} & {0, CROP}])
    return np.c_[border, np.full(len(border), np.percentile(face[:, 2], 95))]


def _draw_strokes(strokes: list) -> np.ndarray:
    """Return a mask (CROP,CROP) uint8: 255 on the strokes, 0 elsewhere."""
    mask = np.zeros((CROP, CROP), np.uint8)
    for width, corners in strokes:
        cv2.polylines(mask, [np.array(corners) - CORNER], False, (255,), width)
    return mask


def _paint_out(picture: np.ndarray, strokes: list) -> np.ndarray:
    """Fill the strokes from the pixels around them (Telea 2004)."""
    return cv2.inpaint(picture, _draw_strokes(strokes), 3, cv2.INPAINT_TELEA)


def _soften(mask: np.ndarray, blur: float) -> np.ndarray:
    return cv2.GaussianBlur(mask, (0, 0), blur).astype(np.float32) / 255


def _soft_shape(side: int, upper: np.ndarray, lower: np.ndarray, blur: float) -> np.ndarray:
    """Return a mask (side,side) float32 in [0,1] of the area between two edges (n,2); empty where they cross.

    blur: standard deviation of the soft border, in pixels.
    """
    lower = np.c_[lower[:, 0], np.maximum(upper[:, 1], lower[:, 1])]
    corners = np.round(np.vstack([upper, lower[::-1]]) * 16).astype(np.int32)  # shift=4: in sixteenths of a pixel
    return _soften(cv2.fillPoly(np.zeros((side, side), np.uint8), [corners], (255,), cv2.LINE_AA, shift=4), blur)


def _bumps(points: np.ndarray, eye_distance: float) -> np.ndarray:
    """Return the heights (P,25) of 25 Gaussian bumps at each point; their centers form a 5x5 grid around the nose."""
    steps = np.arange(-2, 3) * 0.8 * eye_distance
    tops = points[NOSE_TIP] + np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    distance = np.linalg.norm(points[:, None] - tops, axis=-1) / (0.6 * eye_distance)
    return np.exp(-(distance**2) / 2)


def _unit_moves(points: np.ndarray, n_face: int) -> np.ndarray:
    """Return how far every action unit moves every point, per side of the face: (U,2,P,2) in eye distances."""
    follow = _follow_smoothly(_group_weights(len(points)), points, n_face)
    moves = np.zeros((len(ACTION_UNITS), 2, len(points), 2))
    for move, rows in zip(moves, ACTION_UNITS.values(), strict=True):
        for group, outwards, downwards in rows:
            move += follow[group][..., None] * [[[-outwards, downwards]], [[outwards, downwards]]]
    return moves


def _group_weights(n_points: int) -> dict[str, np.ndarray]:
    """Return for each group a (2,P) array: how strongly each of its points moves with it, per side of the face."""
    rows = [(group, side, point, 1.0) for group, sides in GROUPS.items() for side in (0, 1) for point in sides[side]]
    for lip, sides in LIPS.items():
        for side, row, k in np.ndindex(2, 4, 5):
            point, opening = sides[side][row][k], np.sqrt(1 - (k / 5) ** 2)  # an open mouth is an ellipse
            rows += [(f"lip_{lip}", side, point, opening), (f"rim_{lip}", side, point, opening * row / 3)]
            rows += [("lip_corner", side, point, (k / 5) ** 1.6)]
    weights = {group: np.zeros((2, n_points)) for group, *_ in rows}
    for group, side, point, weight in rows:
        weights[group][side, point] = weight
    for of_group in weights.values():
        of_group[:, of_group.all(0)] /= 2  # points on the midline follow both sides, each by half
    return weights


def _follow_smoothly(weights: dict[str, np.ndarray], points: np.ndarray, n_face: int) -> dict[str, np.ndarray]:
    """Fill in the weights of all other points: each becomes a mean of its neighbors (Laplace's equation)."""
    values = np.stack(list(weights.values()))
    fixed = values.any((0, 1))
    fixed[STILL] = fixed[n_face:] = True
    a, b = Triangulation(*points.T).edges.T
    laplacian = np.zeros((len(points), len(points)))
    laplacian[a, b] = laplacian[b, a] = -1 / np.maximum(np.linalg.norm(points[a] - points[b], axis=1), 1)
    np.fill_diagonal(laplacian, -laplacian.sum(1))
    pull = -laplacian[~fixed][:, fixed] @ values[..., fixed].reshape(-1, fixed.sum()).T
    values[..., ~fixed] = np.linalg.solve(laplacian[~fixed][:, ~fixed], pull).T.reshape(len(weights), 2, -1)
    return dict(zip(weights, values, strict=True))


# --- One face ---------------------------------------------------------------------------------------------------------


def draw_examples() -> list[np.ndarray]:
    """Draw the portrait with each expression of ARCHETYPES, without variation: seven pictures (240,240,3) uint8."""
    portrait = load_portrait()
    pictures = [_draw_example(portrait, archetype) for archetype in ARCHETYPES.values()]
    return [cv2.resize(picture, (240, 240), interpolation=cv2.INTER_AREA) for picture in pictures]


def _draw_example(portrait: Portrait, archetype: dict[str, float]) -> np.ndarray:
    units = {unit: archetype.get(unit, 0.0) for unit in ACTION_UNITS}
    points = portrait.mesh[:, :2] + np.einsum("u,uspd->pd", list(units.values()), portrait.moves)
    folds = portrait.folds * max(0.3, units["AU9"], units["AU10"], units["AU12"])
    creases = sum(35 * units[unit] * crease for unit, crease in portrait.creases.items())
    canvas = _warp((portrait.skin + folds - creases).astype(np.float32), portrait.mesh[:, :2], points, CROP)
    _paint_eyes(canvas, points, portrait.eye_distance)
    _paint_mouth(canvas, points, portrait.eye_distance, units)
    gray = np.clip(canvas, 0, 255).astype(np.uint8)
    return cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)


def _draw_face(
    portrait: Portrait, archetype: dict[str, float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one face: image (48,48) uint8 and landmarks (4,2) float32."""
    strengths = draw_strengths(archetype, rng)
    units = dict(zip(ACTION_UNITS, strengths.mean(1), strict=True))
    points, eye_distance = place_points(portrait, strengths, rng)
    canvas = _warp(_make_up(portrait, units, rng), portrait.mesh[:, :2], points)
    _paint_eyes(canvas, points, eye_distance)
    _paint_mouth(canvas, points, eye_distance, units)
    image = _expose(cv2.resize(canvas, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA), rng)
    eyes = [points[corners].mean(0) for corners in EYE_CORNERS]
    landmarks = np.array([*eyes, *points[LIP_CORNERS]], np.float32) / CANVAS
    return mirror_face(image, landmarks) if rng.random() < 0.5 else (image, landmarks)


def draw_strengths(archetype: dict[str, float], rng: np.random.Generator) -> np.ndarray:
    """Draw the strength (U,2) of each action unit per side: the archetype's with variation, and traces of others."""
    typical = np.array([[archetype.get(unit, 0.0)] for unit in ACTION_UNITS])
    n = len(typical)
    varied = 1 + 0.15 * rng.standard_normal((n, 1)) + 0.06 * rng.standard_normal((n, 2))
    traces = 0.12 * rng.standard_normal((n, 1))
    return np.clip(typical * rng.uniform(0.5, 1.2) * varied + traces, 0, 1.5)


def place_points(portrait: Portrait, strengths: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Place the mesh points (P,2) on the canvas; also return the distance between the eyes there, in pixels."""
    moved = portrait.mesh.copy()
    moved[:, :2] += np.einsum("us,uspd->pd", strengths, portrait.moves)
    moved[:, :2] += portrait.bumps @ rng.normal(0, 0.035 * portrait.eye_distance, (portrait.bumps.shape[1], 2))
    face = moved[: IRIS_POINTS.start]
    turn, _ = cv2.Rodrigues(np.radians(rng.normal(0, [4, 6, 5])))
    turned = ((moved - (face.min(0) + face.max(0)) / 2) @ turn.T)[:, :2]
    # A tight crop, from the hairline to the chin, as a face detector gives it.
    zoom = CANVAS / (0.97 * np.ptp(face[:, 1])) * rng.normal(1, [0.05, 0.04])
    return turned * zoom + CANVAS * (0.5 + rng.normal(0, 0.02, 2)), portrait.eye_distance * zoom[0]


def _make_up(portrait: Portrait, units: dict[str, float], rng: np.random.Generator) -> np.ndarray:
    """Return the portrait (H,W) with the folds and creases of the expression, and randomly darkened brows and lips."""
    fold = min(1, 0.3 + 0.7 * max(units["AU9"], units["AU10"], units["AU12"])) * rng.uniform(0.7, 1)
    creases = sum(np.float32(35 * units[unit]) * crease for unit, crease in portrait.creases.items())
    skin = portrait.skin + np.float32(fold) * portrait.folds - creases
    brows, lips = rng.uniform([0.3, 0.1], [0.6, 0.3]).astype(np.float32)
    return skin * (1 - brows * portrait.brows) * (1 - lips * portrait.lips)


def _warp(picture: np.ndarray, source: np.ndarray, target: np.ndarray, side: int = CANVAS) -> np.ndarray:
    """Move the points (P,2) of the picture to their targets on a canvas, together with the triangles between them."""
    source, target = (np.delete(points, IRIS_POINTS, axis=0) for points in (source, target))  # lids may cover an iris
    mesh = Triangulation(*target.T)
    y, x = np.mgrid[1.5:side:3, 1.5:side:3]  # every third pixel is fine enough and nine times as fast
    triangle = mesh.get_trifinder()(x, y)
    planes = np.stack([mesh.calculate_plane_coefficients(column) for column in source.T])  # (2,T,3)
    a, b, c = planes[:, triangle].transpose(3, 1, 2, 0)
    where = a * x[..., None] + b * y[..., None] + c - 0.5
    where = cv2.resize(where.astype(np.float32), (side, side))
    return cv2.remap(picture, where, None, cv2.INTER_LINEAR)  # type: ignore[call-overload]  # asks for a second map


def _blend(canvas: np.ndarray, paint: np.ndarray, mask: np.ndarray) -> None:
    canvas += (paint - canvas) * mask


def _paint_eyes(canvas: np.ndarray, points: np.ndarray, eye_distance: float) -> None:
    """Draw the eyeballs between the lids: warping alone would stretch the iris of a wide-open eye."""
    for (upper, lower), iris in zip(EYES, IRIS_CENTRES, strict=True):
        top, bottom = points[upper], points[lower]
        middle = (points[iris] + (top.mean(0) + bottom.mean(0)) / 2) / 2
        disc = np.zeros(canvas.shape, np.uint8)
        center, radius = np.round(middle * 16).astype(int).tolist(), round(0.085 * eye_distance * 16)
        cv2.circle(disc, center, radius, (255,), -1, cv2.LINE_AA, shift=4)
        _blend(canvas, 165 - 130 * _soften(disc, 1.0), 0.8 * _soft_shape(len(canvas), top, bottom, 1.0))


def _paint_mouth(canvas: np.ndarray, points: np.ndarray, eye_distance: float, units: dict[str, float]) -> None:
    """Draw the dark inside of an open mouth, and the upper teeth when the lips are stretched."""
    top, bottom = points[MOUTH[0]], points[MOUTH[1]]
    length = 0.1 * eye_distance * min(1, units["AU12"] + 0.7 * units["AU20"])
    teeth = top + np.outer(np.sin(np.linspace(0, np.pi, len(top))) ** 0.5, [0, length])
    inside = 35 + 150 * _soft_shape(len(canvas), top, teeth, 1.2)
    opened = np.clip((bottom - top)[:, 1].max() / 4, 0, 1)
    _blend(canvas, inside, opened * _soft_shape(len(canvas), top, bottom, 0.8))


def _expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply side light, blur, contrast, brightness and camera noise; returns (48,48) uint8."""
    x = np.linspace(-1, 1, IMAGE_SIZE)
    light = 1 + rng.normal(0, 0.15) * x + rng.normal(0, 0.1) * x[:, None]
    image = cv2.GaussianBlur(np.multiply(image, light), (0, 0), rng.uniform(0.2, 0.5))
    image = (image - 128) * rng.uniform(0.75, 1.25) + 128 + rng.normal(0, 18)
    image += rng.normal(0, rng.uniform(1, 5), image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def mirror_face(image: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror the image and its landmarks; left and right landmarks change places."""
    flipped = landmarks * np.array([-1, 1], np.float32) + np.array([1, 0], np.float32)
    return image[:, ::-1], flipped[[1, 0, 3, 2]]
