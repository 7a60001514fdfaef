// Crops faces as crop_faces in fer_utils.vision.photos does: gray levels, a square around the box, and 48x48 pixels, with
// the arithmetic of OpenCV's cvtColor and resize.

export const SIDE = 48;

// image: ImageData. squares: [left, top, side] in pixels. Returns an array of 48x48 gray levels for each; beyond the
// border, the outermost pixels repeat.
export function cropFaces(image, squares) {
  const gray = toGray(image);
  return squares.map((square) => crop(gray, square));
}

function toGray({ data, width, height }) {
  const levels = new Uint8Array(width * height);
  for (let i = 0; i < levels.length; i++) {
    levels[i] = (9798 * data[4 * i] + 19235 * data[4 * i + 1] + 3735 * data[4 * i + 2] + 16384) >> 15;
  }
  return { levels, width, height };
}

function crop({ levels, width, height }, square) {
  const [left, top, wide] = square.map(Math.round);
  const side = Math.max(1, wide);
  // Averaging uses all pixels when it shrinks a face, but gives visible blocks when it enlarges one.
  const taps = side > SIDE ? areaTaps(side) : cubicTaps(side);
  const clamp = (value, highest) => Math.min(Math.max(value, 0), highest);
  const columns = taps.map((list) => list.map(([at, weight]) => [clamp(left + at, width - 1), weight]));
  const rows = taps.map((list) => list.map(([at, weight]) => [width * clamp(top + at, height - 1), weight]));
  const pixels = new Uint8ClampedArray(SIDE * SIDE); // rounds and clips what is stored in it
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++) {
      let sum = 0;
      for (const [row, weightY] of rows[y]) for (const [column, weightX] of columns[x]) sum += weightY * weightX * levels[row + column];
      pixels[SIDE * y + x] = sum;
    }
  }
  return pixels;
}

// For each of the 48 pixels of a line: which of `side` pixels it is made of, and their weights. This is INTER_AREA: the
// share of each pixel that lies in the interval which the new pixel covers.
function areaTaps(side) {
  const scale = side / SIDE;
  return Array.from({ length: SIDE }, (_, i) => {
    const start = i * scale, end = start + scale, taps = [];
    for (let at = Math.floor(start); at < Math.min(end, side); at++) {
      const share = Math.min(at + 1, end) - Math.max(at, start);
      if (share > 1e-3) taps.push([at, share / scale]);
    }
    return taps;
  });
}

// The same for INTER_CUBIC: four pixels around the center of the new one (Keys 1981, a = -0.75).
function cubicTaps(side) {
  const scale = side / SIDE, a = -0.75;
  const near = (t) => ((a + 2) * t - (a + 3)) * t * t + 1; // for a distance up to 1
  const far = (t) => ((a * t - 5 * a) * t + 8 * a) * t - 4 * a; // from 1 to 2
  return Array.from({ length: SIDE }, (_, i) => {
    const center = (i + 0.5) * scale - 0.5, at = Math.floor(center), t = center - at;
    const weights = [far(t + 1), near(t), near(1 - t), far(2 - t)];
    return weights.map((weight, k) => [Math.min(Math.max(at - 1 + k, 0), side - 1), weight]);
  });
}
