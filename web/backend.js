import { mountApp } from "./app.js";
import { cropFaces } from "./crop.js";
import { startFinder } from "./faces.js";
import { loadRuntime } from "./runtime.js";

// The backend of app.js that computes in the browser: it finds faces with MediaPipe, and classifies them with ONNX
// Runtime. page.json says which files there are; fer_utils/web.py writes it.

const LARGEST_SIDE = 2048; // pixels, as in fer_utils.vision.photos
const sessions = new Map(); // id of a network -> how to run it
let ort = null, findFaces = null;

async function open() {
  const { runtime, networks, examples } = await (await get("page.json")).json();
  const loaded = await loadRuntime(runtime);
  ort = loaded.ort;
  for (const { id, file } of networks) sessions.set(id, await ort.InferenceSession.create(await read(file)));
  findFaces = await startFinder(loaded.vision, loaded.files, { short: await read("short.tflite"), full: await read("full.tflite") });
  const images = examples.map(async ({ name, file }) => ({ name, image: await (await get(file)).blob() }));
  return { networks, notice: "", examples: await Promise.all(images) };
}

async function predict(image, { network }) {
  const start = performance.now();
  const live = image instanceof HTMLCanvasElement;
  const canvas = live ? image : await decode(image);
  const found = findFaces(canvas, live ? ["short"] : ["short", "full"]); // a webcam is near, and the time counts twice
  const crops = cropFaces(pixelsOf(canvas), found.map(({ square }) => square));
  const probs = await classify(crops, network);
  const faces = found.map(({ box: [left, top, width, height], score, isSmall }, i) => ({
    box: [left / canvas.width, top / canvas.height, width / canvas.width, height / canvas.height],
    detectorConfidence: score,
    isSmall,
    probs: probs[i],
    crop: crops[i],
    heatMap: null,
  }));
  return { faces, ms: performance.now() - start, picture: image };
}

// crops: n arrays of 48x48 gray levels. Returns n arrays of 7 probabilities.
export async function classify(crops, network) {
  if (!crops.length) return [];
  const pixels = new Uint8Array(crops.flatMap((crop) => [...crop]));
  const { logits } = await sessions.get(network).run({ pixels: new ort.Tensor("uint8", pixels, [crops.length, 48, 48]) });
  return crops.map((_, i) => softmax([...logits.data.subarray(7 * i, 7 * i + 7)]));
}

function softmax(logits) {
  const highest = Math.max(...logits);
  const exponentials = logits.map((logit) => Math.exp(logit - highest));
  const sum = exponentials.reduce((a, b) => a + b);
  return exponentials.map((value) => value / sum);
}

// --- Files and pictures -----------------------------------------------------------------------------------------------

async function get(file) {
  const response = await fetch(file);
  if (!response.ok) throw new Error(`${file} is missing on the server (${response.status}): build the page again.`);
  return response;
}

async function read(file) {
  return new Uint8Array(await (await get(file)).arrayBuffer());
}

// Draws a photo upright, on white where it is transparent, and without color management, as in fer_utils.vision.photos.
async function decode(photo) {
  let image;
  try {
    image = await createImageBitmap(photo, { colorSpaceConversion: "none" });
  } catch {
    throw new Error(`${photo.name ?? "The picture"} is not an image that this browser can read; save it as JPEG or PNG`);
  }
  const scale = Math.min(1, LARGEST_SIDE / Math.max(image.width, image.height));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height].map((side) => Math.max(1, Math.round(scale * side)));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  image.close();
  return canvas;
}

export function pixelsOf(canvas) {
  return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
}

const privacy = "Your pictures stay in this browser: the network runs in this page, and nothing is sent or kept.";
export const backend = { open, predict, privacy };
mountApp(document.getElementById("root"), backend);
