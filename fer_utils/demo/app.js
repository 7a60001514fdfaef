// The demo's page, without any computing. mountApp(root, backend) draws it into an element and returns a function that
// ends it. A backend finds and classifies faces, in Python (widget.js) or elsewhere. It has these methods:
//
//   open() -> { networks: [{ id, title, about, heatMap }], notice, examples: [{ name, image: Blob }] }
//     heatMap: whether it can explain itself with Grad-CAM. notice: a sentence for the visitor, or "".
//   predict(image, { network, heatMap }) -> { faces: [face], ms, picture }
//     image: a File or Blob of a photo, or a canvas with a frame of the camera.
//     face: { box: [left, top, width, height] in fractions of the picture, probs: 7 numbers in the order of EMOTIONS,
//             detectorConfidence: 0 to 1 or null, isSmall: whether the crop was enlarged to 48x48 pixels,
//             crop: 48x48 gray levels, heatMap: 48x48 values from 0 to 255 or null }.
//     picture: the upright photo as a Blob that every browser can show; not needed for a canvas.
//   annotateVideo(file, { network, smoothing }, progress, signal) -> { frames, video: Blob, table: Blob }, or null when
//     the AbortSignal has stopped it. progress is called with the share that is done. Without this method there is no
//     tab for videos.
//
// All methods return promises. They reject with an Error whose message is a sentence for the visitor.

export const EMOTIONS = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"];
const CROP_SIDE = 48;
const CAMERA_SIZE = { width: { ideal: 640 }, height: { ideal: 480 } };
const KEEP = 0.7; // weight of the average so far when probabilities are smoothed over frames, as in Smoother in video.py
const CAMERA_MESSAGES = {
  insecure: "The camera works only on https pages or on localhost: open this page under http://localhost. Photos still work.",
  NotAllowedError: "The browser was not allowed to use the camera: allow it in the address bar, then press Start. Photos still work.",
  NotReadableError: "The camera is in use by another program: close that program, then press Start. Photos still work.",
  NotFoundError: "No camera was found: connect one, then press Start. Photos still work.",
  ended: "The camera was disconnected: connect it again, then press Start.",
};
CAMERA_MESSAGES.SecurityError = CAMERA_MESSAGES.NotAllowedError;
CAMERA_MESSAGES.AbortError = CAMERA_MESSAGES.NotReadableError;
CAMERA_MESSAGES.OverconstrainedError = CAMERA_MESSAGES.NotFoundError;

const PAGE = `
<header class="top">
  <div class="title">
    <h1>What does this face show?</h1>
    <p>A network picks one of seven words for every face it sees.</p>
  </div>
  <div class="settings" data-part="settings" hidden>
    <label class="field"><span>Network</span> <select data-part="network"></select></label>
    <label class="switch"><input type="checkbox" role="switch" data-part="heatMap"><i></i>Grad-CAM</label>
  </div>
  <p class="about" data-part="about"></p>
</header>
<p class="notice" role="status" data-part="notice">Loading the networks...</p>
<main data-part="main" hidden>
  <div class="tabs" role="tablist" aria-label="Source of the picture" data-part="tabs"></div>
  <section role="tabpanel" data-part="photo">
    <div class="source" data-part="photoDrop">
      <div class="stage"><div class="view" data-part="photoView"><img alt="" data-part="photoImage"></div></div>
      <div class="tools">
        <button type="button" class="primary" data-part="photoButton">Choose photos</button>
        <input type="file" accept="image/*" multiple hidden data-part="photoFile">
        <span class="hint">or drop or paste them here</span>
      </div>
      <ul class="strip" aria-label="Pictures to try" data-part="strip"></ul>
      <p class="hint">The examples are one photo, and seven drawings of the expressions named below them.</p>
    </div>
    <div class="results" data-part="photoResults"></div>
  </section>
  <section role="tabpanel" data-part="webcam" hidden>
    <div class="source">
      <div class="stage empty" data-part="cameraStage">
        <div class="view" data-part="cameraView">
          <video muted playsinline data-part="camera"></video>
          <p class="speed" data-part="speed" hidden></p>
        </div>
        <p class="placeholder">Your camera appears here.</p>
      </div>
      <div class="tools">
        <button type="button" class="primary" data-part="cameraButton">Start camera</button>
        <label class="field" data-part="cameraField" hidden><span>Camera</span> <select data-part="cameraMenu"></select></label>
        <label class="switch"><input type="checkbox" role="switch" checked data-part="cameraSmoothing"><i></i>Smooth over frames</label>
      </div>
      <p class="hint" role="status" data-part="cameraStatus">The browser asks before it switches the camera on.</p>
    </div>
    <div class="results" data-part="cameraResults"></div>
  </section>
  <section role="tabpanel" data-part="video" hidden>
    <div class="source" data-part="videoDrop">
      <div class="stage empty" data-part="videoStage">
        <div class="view" data-part="playerView">
          <video controls loop playsinline data-part="player" aria-label="The annotated video"></video>
        </div>
        <p class="placeholder">Drop a video here. It comes back with a box around every face, without sound.</p>
      </div>
      <div class="tools">
        <button type="button" class="primary" data-part="videoButton">Choose a video</button>
        <input type="file" accept="video/*" hidden data-part="videoFile">
        <label class="switch"><input type="checkbox" role="switch" checked data-part="videoSmoothing"><i></i>Smooth over frames</label>
        <progress max="1" value="0" aria-label="Share of the video that is done" data-part="progress" hidden></progress>
        <button type="button" data-part="stop" hidden>Stop</button>
      </div>
      <p class="hint" role="status" data-part="videoStatus"></p>
      <div class="tools" data-part="downloads" hidden>
        <a class="button" data-part="videoLink">Download the video</a>
        <a class="button" data-part="tableLink">Download the CSV</a>
      </div>
    </div>
    <div class="results" data-part="videoResults"></div>
  </section>
</main>
<footer>
  <p><strong>What these words are not.</strong> The network predicts which word annotators would have chosen for a small
  gray picture. That is not what a person feels, and it is often wrong. Do not use it to judge anybody, and ask before you
  point the camera at somebody.</p>
  <p data-part="privacy"></p>
</footer>`;

export function mountApp(root, backend) {
  root.classList.add("fer-demo");
  root.innerHTML = PAGE;
  const parts = {};
  for (const element of root.querySelectorAll("[data-part]")) parts[element.dataset.part] = element;
  parts.privacy.textContent = backend.privacy ?? "";
  const settings = () => ({ network: parts.network.value, heatMap: parts.heatMap.checked && !parts.heatMap.disabled });
  const photos = makePhotos(parts, backend, settings);
  const webcam = makeWebcam(parts, backend, settings);
  const videos = backend.annotateVideo ? makeVideos(parts, backend, settings) : null;
  const names = { photo: "Photo", webcam: "Webcam", ...(videos && { video: "Video" }) };
  makeTabs(parts, names, (name) => name === "webcam" || webcam.stop());
  if (!videos) parts.video.remove();

  let networks = [];
  function showNetwork() {
    const network = networks.find(({ id }) => id === parts.network.value);
    parts.about.textContent = network.about;
    parts.heatMap.disabled = !network.heatMap;
    photos.update();
  }
  parts.network.addEventListener("change", showNetwork);
  parts.heatMap.addEventListener("change", photos.update);

  async function open() {
    try {
      const opened = await backend.open();
      networks = opened.networks;
      parts.notice.textContent = opened.notice;
      if (!networks.length) return;
      parts.network.replaceChildren(...networks.map(({ id, title }) => make("option", { value: id, textContent: title })));
      parts.settings.hidden = parts.main.hidden = false;
      parts.heatMap.parentElement.hidden = !networks.some(({ heatMap }) => heatMap);
      photos.add(opened.examples);
      showNetwork();
    } catch (error) {
      parts.notice.textContent = error.message;
    }
  }

  function close() {
    webcam.close();
    videos?.close();
    photos.close();
    window.removeEventListener("pagehide", close);
  }
  window.addEventListener("pagehide", close);
  open();
  return close;
}

// --- Tabs -------------------------------------------------------------------------------------------------------------

function makeTabs(parts, names, opened) {
  const uid = Math.random().toString(36).slice(2); // a notebook may show the same page twice
  const tabs = Object.entries(names).map(([name, text]) => {
    const tab = make("button", { type: "button", id: `${uid}-${name}`, role: "tab", textContent: text });
    parts[name].id = `${uid}-${name}-panel`;
    parts[name].setAttribute("aria-labelledby", tab.id);
    tab.setAttribute("aria-controls", parts[name].id);
    tab.addEventListener("click", () => select(name));
    return [name, tab];
  });
  function select(chosen) {
    for (const [name, tab] of tabs) {
      tab.setAttribute("aria-selected", name === chosen);
      tab.tabIndex = name === chosen ? 0 : -1; // one stop for the Tab key; arrow keys move between tabs
      parts[name].hidden = name !== chosen;
    }
    opened(chosen);
  }
  parts.tabs.append(...tabs.map(([, tab]) => tab));
  parts.tabs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const now = tabs.findIndex(([, tab]) => tab === document.activeElement);
    const [name, tab] = tabs[(now + step + tabs.length) % tabs.length];
    select(name);
    tab.focus();
  });
  select("photo");
}

// --- Photos -----------------------------------------------------------------------------------------------------------

function makePhotos(parts, backend, settings) {
  const results = makeResults(parts.photoResults, parts.photoView);
  const addresses = [];
  let chosen = null, request = 0;

  function add(pictures) {
    const items = pictures.map(({ name, image }) => {
      const address = URL.createObjectURL(image);
      addresses.push(address);
      const thumbnail = make("img", { src: address, alt: "", loading: "lazy" });
      thumbnail.addEventListener("error", () => thumbnail.removeAttribute("src")); // no picture, or none for this browser
      const button = make("button", { type: "button", title: name }, thumbnail, make("span", { textContent: name }));
      const item = { name, image, button };
      button.addEventListener("click", () => choose(item));
      parts.strip.append(make("li", {}, button));
      return item;
    });
    if (items.length) choose(items[0]);
  }

  function choose(item) {
    chosen?.button.removeAttribute("aria-current");
    chosen = item;
    item.button.setAttribute("aria-current", "true");
    parts.strip.scrollLeft = item.button.offsetLeft - parts.strip.clientWidth / 2; // not scrollIntoView: it moves the page
    update();
  }

  async function update() {
    if (!chosen || !settings().network) return;
    const mine = ++request; // the answer to an earlier request is not shown any more
    parts.photoResults.setAttribute("aria-busy", "true");
    try {
      const { faces, picture, ms } = await backend.predict(chosen.image, settings());
      if (mine !== request) return;
      await showImage(parts.photoImage, picture);
      setRatio(parts.photoView, parts.photoImage.naturalWidth, parts.photoImage.naturalHeight);
      parts.photoImage.alt = chosen.name;
      results.show(faces, `${countFaces(faces)}, ${Math.round(ms)} ms`);
    } catch (error) {
      if (mine !== request) return;
      parts.photoImage.removeAttribute("src");
      results.fail(error.message);
    }
    parts.photoResults.removeAttribute("aria-busy");
  }

  const addFiles = (files) => add(files.map((file) => ({ name: file.name, image: file })));
  acceptFiles(parts.photoDrop, parts.photoButton, parts.photoFile, addFiles);
  const paste = (event) => parts.photo.offsetParent && addFiles([...(event.clipboardData?.files ?? [])]);
  document.addEventListener("paste", paste);
  function close() {
    document.removeEventListener("paste", paste);
    addresses.forEach(URL.revokeObjectURL);
  }
  return { add, update, close };
}

async function showImage(image, picture) {
  const address = URL.createObjectURL(picture);
  image.src = address;
  await image.decode();
  URL.revokeObjectURL(address);
}

// The style sheet makes a view as large as there is room for a picture of this shape; boxes are placed in the view.
function setRatio(view, width, height) {
  view.style.setProperty("--ratio", width / height);
}

// Files that are chosen with a button or dropped on an area.
function acceptFiles(area, button, input, accept) {
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    accept([...input.files]);
    input.value = ""; // so that the same file can be chosen again
  });
  const mark = (on) => (event) => {
    event.preventDefault();
    area.classList.toggle("dropping", on);
  };
  area.addEventListener("dragover", mark(true));
  area.addEventListener("dragleave", mark(false));
  area.addEventListener("drop", (event) => {
    mark(false)(event);
    accept([...event.dataTransfer.files]);
  });
}

// --- Webcam -----------------------------------------------------------------------------------------------------------

// One frame at a time is on its way: the next one is taken when the answer to the last has come, so none waits in a
// queue, however slow the answers are. The video itself is never delayed.
function makeWebcam(parts, backend, settings) {
  const results = makeResults(parts.cameraResults, parts.cameraView, true);
  const menu = makeCameraMenu(parts, () => current && start());
  const { camera } = parts;
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  let current = null; // while the camera is on or opens: { stream }, another object after every start

  async function start() {
    release(current); // a phone opens only one camera at a time
    const mine = (current = { stream: null });
    results.clear(); // an old answer must not look like a new one
    parts.cameraButton.textContent = "Stop camera";
    parts.cameraStatus.textContent = "Waiting for the camera...";
    try {
      if (!window.isSecureContext || !navigator.mediaDevices) throw { name: "insecure" };
      mine.stream = await navigator.mediaDevices.getUserMedia({ video: { ...CAMERA_SIZE, ...menu.wanted() }, audio: false });
      if (current !== mine) return release(mine);
      const [track] = mine.stream.getVideoTracks();
      track.addEventListener("ended", () => current === mine && end(CAMERA_MESSAGES.ended));
      camera.srcObject = mine.stream;
      await camera.play();
      if (current !== mine) return;
      showCamera(isMirrored(track));
      await menu.update(track);
      await predictFrames(mine, isMirrored(track));
    } catch (error) {
      if (current === mine) end(CAMERA_MESSAGES[error.name] ?? `The camera was switched off: ${error.message ?? error.name}`);
    }
  }

  function showCamera(mirrored) {
    camera.classList.toggle("mirrored", mirrored);
    camera.setAttribute("aria-label", mirrored ? "Your camera, mirrored" : "Your camera");
    setRatio(parts.cameraView, camera.videoWidth, camera.videoHeight);
    parts.cameraStage.classList.remove("empty");
    parts.cameraStatus.textContent = "";
  }

  async function predictFrames(mine, mirrored) {
    const nextFrame = watchFrames(camera), smooth = makeSmoother(), times = [];
    while (current === mine) {
      await nextFrame();
      if (current !== mine) return;
      canvas.width = camera.videoWidth;
      canvas.height = camera.videoHeight;
      context.drawImage(camera, 0, 0);
      const { faces, ms } = await backend.predict(canvas, settings());
      if (current !== mine) return; // stopped, and perhaps started again
      const smoothed = smooth(faces); // always, so that it never lags behind
      results.show(parts.cameraSmoothing.checked ? smoothed : faces, countFaces(faces), mirrored);
      parts.speed.textContent = `${perSecond(times)} frames/s · ${Math.round(ms)} ms each`;
      parts.speed.hidden = false;
    }
  }

  function end(message) {
    release(current);
    current = null;
    camera.srcObject = null;
    results.clear();
    parts.cameraStage.classList.add("empty");
    parts.speed.hidden = true;
    parts.cameraButton.textContent = "Start camera";
    parts.cameraStatus.textContent = message;
  }

  const stop = () => current && end("The camera is off.");
  function close() {
    stop();
    menu.close();
  }
  parts.cameraButton.addEventListener("click", () => (current ? stop() : start()));
  return { stop, close };
}

// The menu of cameras. It appears when there are several, which a browser tells only after it was allowed to use one.
function makeCameraMenu({ cameraField, cameraMenu }, changed) {
  let chosen = null; // the id of the camera that the visitor has chosen

  async function update(track = null) {
    const shown = track ? track.getSettings().deviceId : cameraMenu.value;
    const cameras = (await navigator.mediaDevices.enumerateDevices()).filter(({ kind }) => kind === "videoinput");
    const options = cameras.map(({ deviceId, label }, i) =>
      make("option", { value: deviceId, textContent: label || `Camera ${i + 1}`, selected: deviceId === shown }));
    cameraMenu.replaceChildren(...options);
    cameraField.hidden = cameras.length < 2;
    if (!cameras.some(({ deviceId }) => deviceId === chosen)) chosen = null; // it was unplugged
  }

  const plugged = () => cameraMenu.length && update(); // not before a camera was used
  cameraMenu.addEventListener("change", () => {
    chosen = cameraMenu.value;
    changed();
  });
  navigator.mediaDevices?.addEventListener("devicechange", plugged);
  const wanted = () => (chosen ? { deviceId: { exact: chosen } } : { facingMode: "user" });
  const close = () => navigator.mediaDevices?.removeEventListener("devicechange", plugged);
  return { update, wanted, close };
}

// People expect to see themselves as in a mirror, but not what a phone's rear camera shows. Many cameras do not tell where
// they look: these are taken for webcams.
function isMirrored(track) {
  return track.getSettings().facingMode !== "environment";
}

// Returns a function that waits until the video shows another frame than at its last call.
function watchFrames(video) {
  if (!video.requestVideoFrameCallback) return () => new Promise(requestAnimationFrame);
  let fresh = false, wake = null;
  (function watch() {
    video.requestVideoFrameCallback(() => {
      fresh = true;
      wake?.();
      watch();
    });
  })();
  return async () => {
    if (!fresh) await new Promise((done) => { wake = done; });
    fresh = false;
    wake = null;
  };
}

// Answers during the last second, now included. times: when they came; it is changed here.
function perSecond(times) {
  const now = performance.now();
  times.push(now);
  while (times[0] < now - 1000) times.shift();
  return times.length;
}

function release(session) {
  session?.stream?.getTracks().forEach((track) => track.stop());
}

// Averages the probabilities of each face over frames. A face without a match in the last frame starts anew.
function makeSmoother() {
  let last = [];
  return (faces) => {
    last = faces.map((face) => {
      const before = last.find((other) => overlap(face.box, other.box) > 0.3);
      const probs = before ? face.probs.map((p, k) => KEEP * before.probs[k] + (1 - KEEP) * p) : face.probs;
      return { ...face, probs };
    });
    return last;
  };
}

// Intersection over union of two boxes.
export function overlap([left, top, width, height], [left2, top2, width2, height2]) {
  const shared =
    Math.max(0, Math.min(left + width, left2 + width2) - Math.max(left, left2)) *
    Math.max(0, Math.min(top + height, top2 + height2) - Math.max(top, top2));
  return shared / (width * height + width2 * height2 - shared);
}

// --- Videos -----------------------------------------------------------------------------------------------------------

function makeVideos(parts, backend, settings) {
  const results = makeResults(parts.videoResults);
  const { player } = parts;
  let running = null, rows = [], addresses = [];

  async function annotate(file) {
    if (!file || running) return;
    running = new AbortController();
    begin(file);
    try {
      const options = { ...settings(), smoothing: parts.videoSmoothing.checked };
      const done = await backend.annotateVideo(file, options, showProgress, running.signal);
      parts.videoStatus.textContent = done ? `${file.name}: ${done.frames} frames` : "Stopped, nothing was kept.";
      if (done) await show(file, done);
    } catch (error) {
      parts.videoStatus.textContent = error.message;
    } finally {
      running = null;
      parts.progress.hidden = parts.stop.hidden = true;
      parts.videoButton.disabled = false;
    }
  }

  function begin(file) {
    results.clear();
    forget();
    parts.videoButton.disabled = true;
    parts.progress.hidden = parts.stop.hidden = false;
    parts.progress.value = 0;
    parts.videoStatus.textContent = `Reading ${file.name}...`;
  }

  function showProgress(share) {
    parts.progress.value = share;
    parts.videoStatus.textContent = `${Math.round(100 * share)} % done`;
  }

  async function show(file, { video, table }) {
    rows = parseTable(await table.text());
    addresses = [video, table].map((blob) => URL.createObjectURL(blob));
    const stem = file.name.replace(/\.[^.]*$/, "");
    Object.assign(parts.videoLink, { href: addresses[0], download: `${stem}_faces.webm` });
    Object.assign(parts.tableLink, { href: addresses[1], download: `${stem}_faces.csv` });
    parts.downloads.hidden = false;
    parts.videoStage.classList.remove("empty");
    player.src = addresses[0];
    player.muted = true;
    player.onloadedmetadata = () => setRatio(parts.playerView, player.videoWidth, player.videoHeight);
    player.play().catch(() => {}); // some browsers play only when they are told to
    watch();
  }

  // The cards follow the video: they show the rows of the table whose frame is on the screen.
  function watch() {
    if (!rows.length && !addresses.length) return;
    const next = rows.findLast(({ seconds }) => seconds <= player.currentTime + 0.001);
    const faces = next && player.currentTime - next.seconds < 0.1 ? rows.filter(({ frame }) => frame === next.frame) : [];
    results.show(faces, `${countFaces(faces)} at ${player.currentTime.toFixed(1)} s`);
    player.requestVideoFrameCallback ? player.requestVideoFrameCallback(watch) : setTimeout(watch, 100);
  }

  function forget() {
    addresses.forEach(URL.revokeObjectURL);
    [addresses, rows] = [[], []];
    parts.downloads.hidden = true;
    parts.videoStage.classList.add("empty");
    player.removeAttribute("src");
  }

  function close() {
    running?.abort();
    forget();
  }
  acceptFiles(parts.videoDrop, parts.videoButton, parts.videoFile, ([file]) => annotate(file));
  parts.stop.addEventListener("click", () => running?.abort());
  return { close };
}

// The rows of a table that fer_utils.vision.video has written, as faces without a crop.
function parseTable(text) {
  const [head, ...lines] = text.trim().split(/\r?\n/).map((line) => line.split(","));
  return lines.map((cells) => {
    const row = Object.fromEntries(head.map((name, k) => [name, Number(cells[k])]));
    const { frame, seconds, score } = row;
    return { frame, seconds, detectorConfidence: score, probs: EMOTIONS.map((emotion) => row[emotion]) };
  });
}

// --- Faces: boxes on a picture, and a card for each ------------------------------------------------------------------

// Shows faces in an area of cards and, if there is a stage, as boxes on it. Cards and boxes are kept and only changed,
// because a camera gives many answers per second.
function makeResults(area, stage = null, live = false) {
  const count = make("span", {}), tooSmall = make("span", { className: "too-small" });
  const status = make("p", { className: "count" }, count, tooSmall);
  status.setAttribute("role", live || !stage ? "presentation" : "status"); // a live picture must not be read out
  const grid = make("div", { className: "cards" });
  area.append(status, grid);
  const cards = [], boxes = [];

  function show(faces, text, mirrored = false) {
    count.textContent = text;
    tooSmall.textContent = warnOfSmall(faces);
    status.classList.remove("failed");
    grid.classList.toggle("single", faces.length === 1);
    resize(cards, faces.length, makeCard, grid);
    faces.forEach((face, i) => cards[i].show(face, faces.length > 1 ? i + 1 : null));
    if (!stage) return;
    resize(boxes, faces.length, makeBox, stage);
    faces.forEach((face, i) => boxes[i].show(face, faces.length > 1 ? i + 1 : null, mirrored));
  }
  function fail(message) {
    show([], message);
    status.classList.add("failed");
  }
  return { show, fail, clear: () => show([], "") };
}

function resize(items, n, makeItem, parent) {
  while (items.length > n) items.pop().element.remove();
  while (items.length < n) {
    items.push(makeItem());
    parent.append(items.at(-1).element);
  }
}

function makeBox() {
  const count = make("b", {}), word = make("span", {});
  const element = make("div", { className: "box" }, make("p", {}, count, word));
  function show({ box: [left, top, width, height], probs }, number, mirrored) {
    const { emotion, percent } = likeliest(probs);
    element.dataset.emotion = emotion;
    const x = mirrored ? 1 - left - width : left;
    element.classList.toggle("high", top < 0.09); // no room for the label above the box
    element.classList.toggle("right", x + width / 2 > 0.7);
    element.classList.toggle("one-of-several", number !== null);
    const sides = { left: x, top, width, height };
    for (const [side, value] of Object.entries(sides)) element.style[side] = `${100 * value}%`;
    count.textContent = number ?? "";
    word.textContent = number ? emotion : `${emotion} ${percent}`;
  }
  return { element, show };
}

function makeCard() {
  const number = make("span", { className: "number" });
  const word = make("strong", {}), sure = make("span", { className: "sure" }), detector = make("p", { className: "detector" });
  const canvas = make("canvas", { width: CROP_SIDE, height: CROP_SIDE });
  canvas.setAttribute("role", "img");
  const caption = make("figcaption", {}), crop = make("figure", {}, canvas, caption);
  const bars = EMOTIONS.map((emotion) => {
    const fill = make("i", {}), value = make("b", {});
    const row = make("li", {}, make("span", { textContent: emotion }), make("div", { className: "track" }, fill), value);
    row.dataset.emotion = emotion;
    return { row, fill, value };
  });
  const head = make("div", { className: "head" }, crop, make("div", {}, number, word, sure, detector));
  const element = make("article", { className: "card" }, head, make("ul", {}, ...bars.map(({ row }) => row)));

  function show(face, index) {
    const { emotion, percent } = likeliest(face.probs);
    element.dataset.emotion = emotion;
    number.textContent = index ? `Face ${index}` : "";
    word.textContent = emotion;
    sure.textContent = percent;
    detector.textContent =
      face.detectorConfidence === null ? "no face detector" : `face detector: ${asPercent(face.detectorConfidence).replace(" ", "\u00a0")}`;
    if (face.isSmall) detector.textContent += ", few pixels";
    bars.forEach(({ row, fill, value }, k) => {
      row.classList.toggle("likeliest", EMOTIONS[k] === emotion);
      fill.style.transform = `translateX(${100 * face.probs[k] - 100}%)`;
      value.textContent = asPercent(face.probs[k]);
    });
    crop.hidden = !face.crop;
    if (!face.crop) return;
    caption.textContent = face.heatMap ? "Grad-CAM" : "what it sees";
    canvas.setAttribute("aria-label", `The crop that the network sees${face.heatMap ? ", with its heat map" : ""}`);
    drawCrop(canvas, face);
  }
  return { element, show };
}

function drawCrop(canvas, { crop, heatMap }) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(CROP_SIDE, CROP_SIDE);
  for (let i = 0; i < crop.length; i++) {
    const share = heatMap ? (0.8 * heatMap[i]) / 255 : 0; // where the map is 0, the face is seen as it is
    const color = HEAT[heatMap ? heatMap[i] : 0].map((value) => share * value + (1 - share) * crop[i]);
    image.data.set([...color, 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

// 256 colors between the anchors of matplotlib's map "inferno".
const HEAT = (() => {
  const anchors = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
  return Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (anchors.length - 1), k = Math.min(Math.floor(at), anchors.length - 2);
    return anchors[k].map((low, channel) => low + (at - k) * (anchors[k + 1][channel] - low));
  });
})();

function likeliest(probs) {
  const k = probs.indexOf(Math.max(...probs));
  return { emotion: EMOTIONS[k], percent: asPercent(probs[k]) };
}

const asPercent = (share) => `${Math.round(100 * share)} %`;
const plural = (n) => `${n} face${n > 1 ? "s" : ""}`;
const countFaces = (faces) => (faces.length ? plural(faces.length) : "no face");

// The words of small_notice in fer_utils.faces.
function warnOfSmall(faces) {
  const n = faces.filter(({ isSmall }) => isSmall).length;
  return n ? `${plural(n)} may be too small; below ${CROP_SIDE}x${CROP_SIDE} pixels, predictions are unreliable` : "";
}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
