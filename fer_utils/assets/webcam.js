// A webcam for a notebook: one frame at a time goes to the kernel, the next one only after it has answered.
// So frames are dropped, and none waits in a queue, however slow the answer is.

const MESSAGES = {
  insecure: "The camera works only on https pages or on localhost: open this page under http://localhost. Uploading images still works.",
  denied: "The browser was not allowed to use the camera: allow it in the address bar, then press Start. Uploading images still works.",
  busy: "The camera is in use by another program: close that program, then press Start. Uploading images still works.",
  absent: "No camera was found: connect one, then press Start. Uploading images still works.",
  unplugged: "The camera was disconnected: connect it again, then press Start.",
  silent: "The kernel has not answered for 20 seconds, so the camera was switched off: see whether it is busy, then press Start.",
};
const KINDS = {
  NotAllowedError: "denied", SecurityError: "denied",
  NotReadableError: "busy", AbortError: "busy",
  NotFoundError: "absent", OverconstrainedError: "absent",
};
const PATIENCE = 20000; // milliseconds

function render({ model, el }) {
  const view = Math.random().toString(36).slice(2); // a notebook may show the same widget twice
  const start = makeButton("Start camera"), stop = makeButton("Stop camera");
  const status = document.createElement("p"), picture = document.createElement("img");
  const video = document.createElement("video"), canvas = document.createElement("canvas");
  status.setAttribute("role", "status");
  picture.alt = "The last frame with a box around each face";
  picture.style.maxWidth = "100%";
  video.muted = video.playsInline = true;
  stop.disabled = true;
  picture.hidden = true;
  el.classList.add("fer-webcam");
  el.append(start, stop, status, picture);

  let stream = null, number = 0, timer = null, closed = false;

  async function begin() {
    start.disabled = true;
    status.textContent = "Waiting for the camera...";
    try {
      if (!window.isSecureContext || !navigator.mediaDevices) throw { name: "insecure" };
      const opened = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 }, audio: false });
      if (closed) return release(opened);
      stream = opened;
      stream.getVideoTracks()[0].addEventListener("ended", () => end(MESSAGES.unplugged));
      video.srcObject = stream;
      await video.play();
      if (!stream) return;
      stop.disabled = false;
      send(stream);
    } catch (error) {
      const kind = error.name === "insecure" ? "insecure" : KINDS[error.name];
      end(MESSAGES[kind] ?? `The camera cannot be used (${error.name}: ${error.message}). Uploading images still works.`);
    }
  }

  async function send(mine) {
    if (stream !== mine) return; // stopped, and perhaps started again
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    const frame = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.85));
    const bytes = await frame.arrayBuffer();
    if (stream !== mine) return;
    number += 1;
    model.send({ view, number }, undefined, [bytes]);
    timer = setTimeout(() => end(MESSAGES.silent), PATIENCE);
  }

  function receive(content, buffers) {
    if (!stream || content.view !== view || content.number !== number) return;
    clearTimeout(timer);
    status.textContent = content.text;
    picture.hidden = true; // without a new answer, none is shown
    if (buffers.length) show(buffers[0]);
    const mine = stream;
    requestAnimationFrame(() => send(mine));
  }

  function show(bytes) {
    const address = URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
    picture.onload = () => URL.revokeObjectURL(address);
    picture.src = address;
    picture.hidden = false;
  }

  function end(message) {
    clearTimeout(timer);
    if (stream) release(stream);
    stream = null;
    video.srcObject = null;
    picture.hidden = true; // an old answer must not look like a new one
    start.disabled = false;
    stop.disabled = true;
    status.textContent = message;
  }

  function close() {
    closed = true;
    end("");
    window.removeEventListener("pagehide", close);
    model.off("msg:custom", receive);
  }

  start.addEventListener("click", begin);
  stop.addEventListener("click", () => end("The camera is off."));
  model.on("msg:custom", receive);
  window.addEventListener("pagehide", close);
  return close; // called when the output is cleared or the notebook is closed
}

function makeButton(text) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.className = "jupyter-button";
  return button;
}

function release(stream) {
  stream.getTracks().forEach((track) => track.stop());
}

export default { render };
