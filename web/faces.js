import { overlap } from "./app.js";
import { SIDE } from "./crop.js";

// Finds faces with the two detectors of fer_utils.vision.detector, on the same model files.

// Lowest scores, as they are set in the graphs of MediaPipe's Python package. They also decide which detections of one
// face are averaged to its box; with these, boxes are those of Python, rounded down to whole pixels.
const LOWEST_SCORE = { short: 0.5, full: 0.6 };
// The detector's box in images of FER2013: its side, and how far its center lies below the center of the image, both as
// fractions of the side of the image. These are the numbers of BOX_IN_CROP in fer_utils.vision.detector.
export const BOX_IN_CROP = { short: [0.85, 0.07], full: [0.87, 0.03] };

// vision: MediaPipe's module. files: name -> address of its files. models: the bytes of both detectors.
// Returns a function that finds the faces in a canvas from left to right: [{ box, score, square, isSmall }], in pixels.
export async function startFinder(vision, files, models) {
  const paths = { wasmLoaderPath: files["vision_wasm_internal.js"], wasmBinaryPath: files["vision_wasm_internal.wasm"] };
  const detectors = {};
  try {
    for (const [range, model] of Object.entries(models)) detectors[range] = await startDetector(vision, paths, model, LOWEST_SCORE[range]);
  } catch (error) {
    throw new Error(`Faces cannot be found (${error.message}): switch on WebGL (hardware acceleration), or use another browser.`);
  }
  return (canvas, ranges) =>
    withoutDoubles(ranges.flatMap((range) => detectors[range].detect(canvas).detections.map((found) => toFace(found, range))));
}

async function startDetector(vision, paths, modelAssetBuffer, minDetectionConfidence) {
  const baseOptions = { modelAssetBuffer, delegate: "CPU" };
  const canvas = document.createElement("canvas"); // by default an OffscreenCanvas, which has no WebGL in some browsers
  const options = { baseOptions, canvas, runningMode: "IMAGE", minDetectionConfidence };
  const detector = await vision.FaceDetector.createFromOptions(paths, options);
  detector.detect(document.createElement("canvas")); // the first picture takes a second longer
  return detector;
}

function toFace({ boundingBox: { originX, originY, width, height }, categories: [{ score }] }, range) {
  const box = [originX, originY, width, height];
  const square = cropSquare(box, ...BOX_IN_CROP[range]);
  return { box, score, square, isSmall: square[2] < SIDE };
}

// Left, top and side of the crop around a box, framed as in FER2013.
export function cropSquare([left, top, width, height], ratio, below) {
  const side = (width + height) / 2 / ratio;
  return [left + width / 2 - side / 2, top + height / 2 - below * side - side / 2, side];
}

// Non-maximum suppression: of two faces whose boxes overlap by more than 0.3, the one with the higher score stays.
function withoutDoubles(faces) {
  const kept = [];
  for (const face of faces.toSorted((a, b) => b.score - a.score)) {
    if (kept.every((other) => overlap(face.box, other.box) <= 0.3)) kept.push(face);
  }
  return kept.sort((a, b) => a.box[0] - b.box[0]);
}
