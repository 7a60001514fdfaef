"""How long FER2013 takes to load, first and second time, and how much memory: the zip, its folders and the CSV.

    python benchmarks/data_loading.py --archive data/archive.zip

Builds the unpacked folders and a fer2013.csv of full size (0.3 GB) from the archive in a temporary folder, which is
deleted afterwards. Every load runs in a fresh process with a cache of its own; seconds exclude starting Python.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from fer_utils.data import load_fer2013
from fer_utils.paths import PROJECT_ROOT

USAGES = ("Training", "PublicTest", "PrivateTest")

# ru_maxrss is in kilobytes on Linux and in bytes on macOS.
MEASURE = """
import json, resource, sys, time
from pathlib import Path
from fer_utils.data import load_fer2013
start = time.perf_counter()
faces = load_fer2013(Path(sys.argv[1]), Path(sys.argv[2]))
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"seconds": seconds, "peak_mb": peak / 1e6, "n": len(faces.labels)}))
"""


def build_csv(archive: Path, path: Path, cache_dir: Path) -> None:
    """Write the images of the archive as a fer2013.csv."""
    faces = load_fer2013(archive, cache_dir)
    texts = [str(value) for value in range(256)]
    with path.open("w") as stream:
        stream.write("emotion,pixels,Usage\n")
        for image, label, split_id in zip(faces.images, faces.labels, faces.split_ids, strict=True):
            pixels = " ".join(map(texts.__getitem__, image.ravel().tolist()))
            stream.write(f"{label},{pixels},{USAGES[split_id]}\n")


def measure(source: Path, cache_dir: Path) -> dict:
    """Load a source in a fresh process; return its seconds, peak memory in MB and number of images."""
    command = [sys.executable, "-c", MEASURE, str(source), str(cache_dir)]
    done = subprocess.run(command, cwd=PROJECT_ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True, help="Kaggle's archive.zip")
    archive = parser.parse_args().archive.resolve()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(folder / "unpacked")
        # In a process of its own: Linux hands the peak memory of a parent down to the processes that it starts.
        builder = multiprocessing.Process(target=build_csv, args=(archive, folder / "fer2013.csv", folder / "build"))
        builder.start()
        builder.join()
        print(f"{os.cpu_count()} CPU cores, Python {sys.version.split()[0]}\n")
        print("| source | MB on disk | images | first load | second load | peak memory, first | peak memory, second |")
        print("|---|---|---|---|---|---|---|")
        for source in (archive, folder / "unpacked", folder / "fer2013.csv"):
            files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in files) / 1e6
            first, second = (measure(source, folder / "cache") for _ in range(2))
            print(
                f"| {source.name} | {size:.0f} | {first['n']:,} | {first['seconds']:.1f} s | {second['seconds']:.2f} s "
                f"| {first['peak_mb']:.0f} MB | {second['peak_mb']:.0f} MB |"
            )


if __name__ == "__main__":
    main()
