// Loads ONNX Runtime and MediaPipe. Every file is checked against its hash, wherever it comes from.

// runtime: name of a file -> { url, integrity }. Returns the modules, and name -> address of the checked file.
export async function loadRuntime(runtime) {
  const checked = Object.entries(runtime).map(async ([name, file]) => [name, await check(file)]);
  const files = Object.fromEntries(await Promise.all(checked));
  const ort = await import(files["ort.wasm.bundle.min.mjs"]);
  ort.env.wasm.numThreads = 1; // more threads need a server that isolates the page from others (COOP and COEP)
  ort.env.wasm.wasmPaths = { wasm: files["ort-wasm-simd-threaded.wasm"] };
  return { ort, vision: await import(files["vision_bundle.mjs"]), files };
}

async function check({ url, integrity }) {
  try {
    const response = await fetch(url, { integrity });
    if (!response.ok) throw new Error(response.status);
    return URL.createObjectURL(await response.blob());
  } catch (error) {
    throw new Error(`${url} could not be loaded (${error.message}): check the connection, then load this page again.`);
  }
}
