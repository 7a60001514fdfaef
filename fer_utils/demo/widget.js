import { mountApp } from "./app.js";

// Connects the page to the Python class Demo with messages of the notebook. Every question has an id, and the answer
// with this id belongs to it.

const PATIENCE = 20000, PATIENCE_OPENING = 120000; // milliseconds without an answer
const PIECE = 4 * 2 ** 20; // bytes of a video in one message; JupyterLab refuses more than 10 MB
const LARGEST_PHOTO = 8 * 2 ** 20; // bytes; larger photos are made smaller before they are sent
const LARGEST_SIDE = 2048; // pixels, as in fer_utils.vision.photos
const FRAME_QUALITY = 0.7; // of the JPEG; a face of 48x48 pixels shows no difference
const SILENT = "The kernel has not answered for a while: see whether it is busy, or load this page again.";
const CROP_PIXELS = 48 * 48;

function render({ model, el }) {
  const backend = connect(model);
  const close = mountApp(el, backend);
  return () => { // called when the output is cleared or the notebook is closed
    close();
    backend.close();
  };
}

function connect(model) {
  const view = Math.random().toString(36).slice(2); // a notebook may show the same widget twice
  const questions = new Map();
  let last = 0;

  function ask(question, buffers = [], { patience = PATIENCE, progress = () => {} } = {}) {
    const id = `${view}-${++last}`;
    return new Promise((resolve, reject) => {
      const fail = () => questions.delete(id) && reject(new Error(SILENT));
      questions.set(id, { resolve, reject, progress, fail, patience, timer: setTimeout(fail, patience) });
      model.send({ ...question, id }, undefined, buffers);
    });
  }

  function receive({ id, error, share, ...content }, buffers) {
    const question = questions.get(id);
    if (!question) return; // it is for another view, or too late
    clearTimeout(question.timer);
    if (share !== undefined) {
      question.progress(share);
      question.timer = setTimeout(question.fail, question.patience);
      return;
    }
    questions.delete(id);
    error ? question.reject(new Error(error)) : question.resolve({ ...content, buffers });
  }
  model.on("msg:custom", receive);

  async function open() {
    const { buffers, examples, ...opened } = await ask({ kind: "open" }, [], { patience: PATIENCE_OPENING });
    const images = examples.map((name, i) => ({ name, image: new Blob([buffers[i]], { type: "image/jpeg" }) }));
    return { ...opened, examples: images };
  }

  async function predict(image, options) {
    const live = image instanceof HTMLCanvasElement;
    const bytes = await (live ? encode(image) : shrink(image)).then((blob) => blob.arrayBuffer());
    const question = { kind: "predict", live, name: image.name ?? "picture", ...options };
    const { faces, ms, buffers: [crops, heatMaps, picture] } = await ask(question, [bytes]);
    const part = (maps, i) => (maps.byteLength ? new Uint8Array(maps.buffer, maps.byteOffset + i * CROP_PIXELS, CROP_PIXELS) : null);
    return {
      ms,
      faces: faces.map((face, i) => ({ ...face, crop: part(crops, i), heatMap: part(heatMaps, i) })),
      picture: new Blob([picture], { type: "image/jpeg" }),
    };
  }

  async function annotateVideo(file, options, progress, signal) {
    const video = `${view}-${++last}`;
    signal.addEventListener("abort", () => model.send({ kind: "stop", video }));
    for (let start = 0; start < file.size || start === 0; start += PIECE) {
      await ask({ kind: "piece", video, name: file.name }, [await file.slice(start, start + PIECE).arrayBuffer()]);
      if (signal.aborted) return null;
    }
    const { frames, buffers } = await ask({ kind: "annotate", video, ...options }, [], { progress });
    const blob = (i, type) => new Blob([buffers[i]], { type });
    return frames ? { frames, video: blob(0, "video/webm"), table: blob(1, "text/csv") } : null;
  }

  const close = () => {
    model.off("msg:custom", receive);
    questions.forEach(({ timer }) => clearTimeout(timer));
  };
  const privacy =
    "Your pictures go to the notebook's kernel and nowhere else. They are not kept; a video is deleted when it is done.";
  return { open, predict, annotateVideo, close, privacy };
}

function encode(canvas, quality = FRAME_QUALITY) {
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", quality));
}

async function shrink(file) {
  if (file.size <= LARGEST_PHOTO) return file;
  try {
    const image = await createImageBitmap(file);
    const scale = Math.min(1, LARGEST_SIDE / Math.max(image.width, image.height));
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.width, image.height].map((side) => Math.round(scale * side));
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return await encode(canvas, 0.92);
  } catch {
    throw new Error(`${file.name} has more than 8 MB, and this browser cannot make it smaller; save it as a JPEG and try again`);
  }
}

export default { render };
