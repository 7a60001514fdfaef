"""The demo as a widget of a notebook: it answers the questions of widget.js."""

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import anywidget
import numpy as np

from fer_utils.errors import DataError

if TYPE_CHECKING:
    from fer_utils.demo.predictor import Explained, Predictor

FOLDER = Path(__file__).parent
LARGEST_VIDEO = 500  # MB
Answer = tuple[dict, Sequence[bytes]]  # the fields of a message, and its binary parts


def join_modules() -> str:
    """Join app.js and widget.js to one module, because anywidget takes only one."""
    app, widget = ((FOLDER / name).read_text(encoding="utf-8") for name in ("app.js", "widget.js"))
    return app + widget.removeprefix('import { mountApp } from "./app.js";')


class Demo(anywidget.AnyWidget):
    """A page for photos, the webcam and videos. Pictures stay in memory; a video is deleted when it is done."""

    _esm = join_modules()
    _css = FOLDER / "app.css"

    def __init__(self, inputs: str | Path = "reports", device: str = "auto") -> None:
        """inputs: where notebooks left their networks, see find_artifact. device: "auto", "cpu" or "cuda"."""
        super().__init__()
        self._videos: dict[str, Video] = {}
        self._answers: dict[str, Callable[[dict, list[memoryview]], Answer]] = {
            "open": self._open,
            "predict": self._predict,
            "piece": self._receive_piece,
            "annotate": self._annotate,
            "stop": self._stop,
        }
        self._loading = ThreadPoolExecutor(1).submit(load_predictor, inputs, device)
        self.on_msg(self._receive)

    def _receive(self, _: object, content: dict, buffers: list[memoryview]) -> None:
        """Answer one question of the page. A video takes long, so it gets a thread; all else is answered in turn."""
        if content["kind"] == "annotate":
            threading.Thread(target=self._reply, args=(content, buffers), daemon=True).start()
        else:
            self._reply(content, buffers)

    def _reply(self, content: dict, buffers: list[memoryview]) -> None:
        try:
            fields, parts = self._answers[content["kind"]](content, buffers)
        except DataError as error:
            fields, parts = {"error": str(error)}, ()
        except Exception as error:  # any error must be visible in the page, and the next question may work
            fields, parts = {"error": f"{type(error).__name__}: {error}"}, ()
        self.send({**fields, "id": content["id"]}, list(parts))

    def _open(self, content: dict, buffers: list[memoryview]) -> Answer:
        predictor = self._loading.result()
        networks = predictor.networks()
        examples = load_examples() if networks else {}
        fields = {"networks": networks, "notice": predictor.notice, "examples": list(examples)}
        return fields, list(examples.values())

    def _predict(self, content: dict, buffers: list[memoryview]) -> Answer:
        from fer_utils.vision.photos import read_image, to_jpeg

        start = time.perf_counter()
        image = read_image(bytes(buffers[0]), content["name"])
        source = "webcam" if content["live"] else "photo"
        prediction = self._loading.result().predict(image, content["network"], source, content["heatMap"])
        milliseconds = 1000 * (time.perf_counter() - start)
        picture = b"" if content["live"] else to_jpeg(image)
        return {"faces": describe(prediction, image), "ms": milliseconds}, [*pack(prediction), picture]

    def _receive_piece(self, content: dict, buffers: list[memoryview]) -> Answer:
        if content["video"] not in self._videos:
            self._videos[content["video"]] = Video(content["name"])
        try:
            self._videos[content["video"]].add(buffers[0])
        except DataError:
            self._forget(content)
            raise
        return {}, ()

    def _annotate(self, content: dict, buffers: list[memoryview]) -> Answer:
        from fer_utils.vision.video import annotate_video

        video = self._videos[content["video"]]
        video.is_complete = True
        predict = self._loading.result().faces_with(content["network"]).for_video(content["smoothing"])
        try:
            frames = annotate_video(video.path, video.film, video.table, predict, self._show_progress(content, video))
            return {"frames": frames}, [path.read_bytes() for path in (video.film, video.table) if frames]
        finally:
            self._forget(content)

    def _show_progress(self, content: dict, video: "Video") -> Callable[[object, float], bool]:
        last = [0.0]  # when the page heard of the progress, in seconds

        def progress(picture: object, done: float) -> bool:
            if time.monotonic() - last[0] > 0.2:
                last[0] = time.monotonic()
                self.send({"id": content["id"], "share": done})
            return video.stopped.is_set()

        return progress

    def _stop(self, content: dict, buffers: list[memoryview]) -> Answer:
        """Stop a video that is being annotated, and forget one that has not arrived completely."""
        if video := self._videos.get(content["video"]):
            video.stopped.set()
            if not video.is_complete:
                self._forget(content)
        return {}, ()

    def _forget(self, content: dict) -> None:
        self._videos.pop(content["video"]).folder.cleanup()


class Video:
    """An uploaded video and its annotated copy, in a folder of their own until that is cleaned up."""

    def __init__(self, name: str) -> None:
        """name: what the visitor called the file."""
        self.folder = tempfile.TemporaryDirectory(prefix="fer-video-")
        self.path = Path(self.folder.name) / "upload" / (Path(name).name[-100:] or "video")
        self.film, self.table = (Path(self.folder.name) / f"annotated.{ending}" for ending in ("webm", "csv"))
        self.stopped = threading.Event()
        self.path.parent.mkdir()
        self.is_complete = False  # whether all pieces have arrived

    def add(self, piece: memoryview) -> None:
        """Add the next piece of the file; DataError if it becomes larger than LARGEST_VIDEO."""
        with self.path.open("ab") as file:
            file.write(piece)
            size = file.tell()
        if size > 1e6 * LARGEST_VIDEO:
            raise DataError(f"{self.path.name} has more than {LARGEST_VIDEO} MB; cut it into pieces and try again")


def load_predictor(inputs: str | Path, device: str) -> "Predictor":
    """Load the networks and start the face detector, side by side."""
    from fer_utils.vision.detector import start_finder

    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(start_finder)
        from fer_utils.demo.predictor import Predictor  # here, because PyTorch takes seconds to import

        return Predictor(inputs, device, starting)


def load_examples() -> dict[str, bytes]:
    """Return pictures to try, name -> JPEG: the portrait of the sample, and its drawings."""
    from matplotlib.cbook import get_sample_data

    from fer_utils.data.sample_faces import ARCHETYPES, draw_examples
    from fer_utils.vision.photos import to_jpeg

    portrait = Path(get_sample_data("grace_hopper.jpg", asfileobj=False)).read_bytes()
    drawings = zip(ARCHETYPES, map(to_jpeg, draw_examples()), strict=True)
    return {"photo": portrait, **dict(drawings)}


def describe(prediction: "Explained", image: np.ndarray) -> list[dict]:
    """Describe the faces of an image as app.js wants them: boxes in fractions of the image."""
    height, width = image.shape[:2]
    faces = []
    for face, probs in zip(prediction.faces, prediction.probs, strict=True):
        left, top, box_width, box_height = face.box
        box = [left / width, top / height, box_width / width, box_height / height]
        confidence = None if np.isnan(face.score) else face.score
        faces.append({"box": box, "detectorConfidence": confidence, "isSmall": face.is_small, "probs": probs.tolist()})
    return faces


def pack(prediction: "Explained") -> tuple[bytes, bytes]:
    """Return the pixels of all crops, and those of all heat maps (0 to 255) or nothing."""
    maps = prediction.heat_maps
    return prediction.crops.tobytes(), b"" if maps is None else (255 * maps).astype(np.uint8).tobytes()
