"""The command `fer`, also python -m fer_utils.cli: emotions of the faces in photos and videos, the demo, evaluation."""

import argparse
import contextlib
import csv
import os
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fer_utils.errors import DataError, TrainingError
from fer_utils.files import require_folder, writable
from fer_utils.paths import PROJECT_ROOT, atomic_write
from fer_utils.vision.mediapipe_process import LandmarksUnavailable

if TYPE_CHECKING:  # these import PyTorch, which takes seconds
    import numpy as np

    from fer_utils.faces import FacePredictor
    from fer_utils.vision.detector import Face

VIDEOS = (".mp4", ".webm", ".avi", ".mov", ".mkv", ".m4v")
VIDEO_COLUMNS = {"left": "x", "top": "y", "score": "detector_confidence"}  # of annotate_video -> of the table
SUCCESS, FAILURE, NOT_STARTED, INTERRUPTED, OUTPUT_CLOSED = 0, 1, 2, 130, 141  # exit codes


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; returns the exit code.

    0: all went well. 1: a picture or video could not be used; the others are done. 2: nothing was started.
    """
    options, rest = parse_options(argv)
    try:
        try:
            return options.run(options, rest)
        finally:
            sys.stdout.flush()
    except (DataError, TrainingError) as error:
        return end(f"fer: {error}", NOT_STARTED)
    except (LandmarksUnavailable, OSError) as error:
        if isinstance(error, BrokenPipeError):
            return end("", OUTPUT_CLOSED)
        return end(f"fer: stopped: {error}", FAILURE)
    except KeyboardInterrupt:
        return end("fer: interrupted", INTERRUPTED)


def end(message: str, code: int) -> int:
    """Print the last message, if somebody can still read it, and return the exit code."""
    with contextlib.suppress(OSError):
        note(message)
    try:
        sys.stdout.flush()
    except OSError:  # closed; without this, Python would complain when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def note(message: str) -> None:
    """Print a message that is not a result; nothing if it is empty."""
    if message:
        print(message, file=sys.stderr, flush=True)


def parse_options(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line; returns its options, and what is for another program. argparse exits with code 2."""
    parser = argparse.ArgumentParser(
        prog="fer",
        description="Predict the emotions of faces. A prediction says which of seven words annotators would choose for"
        " a picture, not what a person feels.",
        epilog="Exit codes: 0 success; 1 a picture or video could not be used, the others are done; 2 nothing was"
        " started; 130 interrupted; 141 output closed.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    predict = commands.add_parser("predict", help="predict the emotions of all faces in photos and videos")
    predict.set_defaults(run=run_predict)
    predict.add_argument("inputs", nargs="+", type=Path, metavar="PATH", help="photos, videos, and folders of both")
    predict.add_argument("--csv", type=Path, metavar="FILE", help="write a table with one row per face (and frame)")
    predict.add_argument("--annotate", type=Path, metavar="FOLDER", help="write copies with boxes and emotions")
    predict.add_argument("--model", help="a checkpoint, or a name such as baseline_cnn (default: the best there is)")
    predict.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    webcam = commands.add_parser("webcam", add_help=False, help="open the demo page; options go to Voila")
    webcam.set_defaults(run=run_webcam)
    evaluate = commands.add_parser("evaluate", add_help=False, help="evaluate a classifier on FER2013; see its --help")
    evaluate.set_defaults(run=run_evaluate)
    options, rest = parser.parse_known_args(argv)
    if rest and options.run is run_predict:
        predict.error(f"unrecognized arguments: {' '.join(rest)}")
    return options, rest


def run_webcam(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Show the demo as a web page. rest: options of Voila, such as --no-browser or --port 8900."""
    notebook = Path("notebooks", "demo.ipynb")
    if not (PROJECT_ROOT / notebook).is_file():
        raise DataError(f"{PROJECT_ROOT} does not hold {notebook}; get the whole project and call this in its folder")
    os.chdir(PROJECT_ROOT)  # where voila.json is
    templates = [str(Path(__file__).parent / "demo" / "page"), os.environ.get("JUPYTER_PATH", "")]
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, templates))
    # -I: import fer_utils from this project, not from the folder in which the command was called.
    os.execv(sys.executable, [sys.executable, "-I", "-m", "voila", str(notebook), "--template=demo", *rest])


def run_evaluate(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Evaluate a classifier. rest: the arguments of fer_utils.evaluate."""
    from fer_utils import evaluate

    return evaluate.main(rest)


# --- Predict ----------------------------------------------------------------------------------------------------------


def run_predict(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Predict photos and videos one after another; what cannot be used is named, and the others go on."""
    from fer_utils.classifiers import describe_origin
    from fer_utils.faces import PICTURES, list_files, load_predictor

    paths = [file for path in options.inputs for file in list_files(path.expanduser(), (*PICTURES, *VIDEOS))]
    files = list(dict.fromkeys(paths))
    predictor, problem = load_predictor(options.model, options.device)
    note(problem)
    for name, network in predictor.networks.items():
        note(f"{name}: {describe_origin(network)}")
    copies = name_copies(files) if options.annotate else {}
    if copies:
        require_folder(options.annotate)
    failed = False
    with open_table(options.csv) as write_rows:
        for file in files:
            copy = options.annotate / copies[file] if copies else None
            predict_file = predict_video if is_video(file) else predict_photo
            try:
                write_rows(predict_file(file, copy, predictor))
            except DataError as error:
                failed = True
                note(f"fer: {error}")
    return FAILURE if failed else SUCCESS


def is_video(file: Path) -> bool:
    """Whether a file is a video, by its name."""
    return file.suffix.lower() in VIDEOS


def name_copies(files: Iterable[Path]) -> dict[Path, str]:
    """Return the names of annotated copies; no two are equal, and none is that of its source."""
    names: dict[Path, str] = {}
    for file in files:
        ending, number = ".webm" if is_video(file) else ".jpg", 1
        name = f"{file.stem}_faces{ending}"
        while name in names.values():
            number += 1
            name = f"{file.stem}_faces{number}{ending}"
        names[file] = name
    return names


@contextlib.contextmanager
def open_table(path: Path | None) -> Iterator[Callable[[Iterable[dict]], None]]:
    """Open a CSV file and yield a function that writes rows; without a path, it only consumes them.

    DataError if the file cannot be written.
    """
    from fer_utils.faces import COLUMNS

    if path is None:
        yield deque(maxlen=0).extend
        return
    columns = [COLUMNS[0], "frame", "seconds", *COLUMNS[1:]]
    with writable(path):  # the header shows whether the disk is full, before any work is done
        path.write_text(",".join(columns) + "\r\n", encoding="utf-8", newline="")
        stream = path.open("a", newline="", encoding="utf-8")
    with stream:
        yield csv.DictWriter(stream, columns).writerows


def predict_photo(path: Path, copy: Path | None, predictor: "FacePredictor") -> Iterator[dict]:
    """Print the predictions for a photo and yield its rows. copy: where to write an annotated copy."""
    from fer_utils.faces import load_picture, to_result, to_rows
    from fer_utils.vision.photos import label, to_jpeg
    from fer_utils.vision.video import draw_predictions

    image = load_picture(path)
    prediction = predictor(image)
    print(f"{path}:", ", ".join(label(i, prediction.probs) for i in range(len(prediction.faces))) or "no face")
    result = to_result(str(path), prediction.faces, prediction.probs)
    note(result.notice)
    if copy:
        with writable(copy):
            atomic_write(copy, to_jpeg(draw_predictions(image, prediction.faces, prediction.probs)))
    yield from ({name: _round(value) for name, value in row.items()} for row in to_rows(result))


def _round(value: object) -> object:
    return f"{value:.4f}" if isinstance(value, float) else value


def predict_video(path: Path, copy: Path | None, predictor: "FacePredictor") -> Iterator[dict]:
    """Print a summary of a video and yield its rows. copy: where to write an annotated copy."""
    from fer_utils.data.constants import EMOTIONS
    from fer_utils.faces import small_notice
    from fer_utils.vision.video import annotate_video

    predict_frame, small = predictor.for_video(), 0

    def count_small(frame: "np.ndarray") -> tuple[list["Face"], "np.ndarray"]:
        nonlocal small
        found, probs = predict_frame(frame)
        small += sum(face.is_small for face in found)
        return found, probs

    with tempfile.TemporaryDirectory(prefix="fer-") as folder:
        table = Path(folder) / "faces.csv"
        frames = annotate_video(path, copy, table, count_small, Progress(path.name))
        labels: Counter[str] = Counter()
        with table.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                emotion = max(EMOTIONS, key=lambda name: float(row[name]))
                labels[emotion] += 1
                cells = {VIDEO_COLUMNS.get(name, name): value for name, value in row.items()}
                yield {"picture": str(path), "label": emotion, **cells}
    often = "".join(f", most often {emotion} ({n / labels.total():.0%})" for emotion, n in labels.most_common(1))
    print(f"{path}: {frames:,} frames, {labels.total():,} faces{often}")
    note(small_notice(str(path), small))


class Progress:
    """Shows on stderr how much of a video is done: in a terminal on one line, else a line every half minute."""

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        """name: of the video."""
        self.name, self.stream = name, stream or sys.stderr
        self.last = time.monotonic()  # when something was shown

    def __call__(self, picture: object, done: float) -> bool:
        """Show the share that is done, 0 to 1; never asks annotate_video to stop."""
        is_terminal = self.stream.isatty()
        is_due = time.monotonic() - self.last > (0.2 if is_terminal else 30)
        text = f"{self.name}: {done:.0%}"
        if is_due or (is_terminal and done == 1):
            self.last = time.monotonic()
            shown = text if done < 1 else " " * len(text)  # at the end, the line is erased
            print(f"\r{shown}\r" if is_terminal else f"{text}\n", end="", file=self.stream, flush=True)
        return False


if __name__ == "__main__":
    sys.exit(main())
