"""Figures for the page: re-encoded, so that it stays small. The files in reports/figures/ stay as they are."""

import base64
import io
from pathlib import Path

from PIL import Image

CSS_DPI = 96  # CSS pixels per inch
SHARP_DPI = 144  # of figures that are shown at once: enough for screens with small pixels
FOLDED_DPI = 96
QUALITY = 80  # of WebP, from 0 to 100


def encode_picture(png: Path, dpi: int) -> dict:
    """Return a figure as WebP in a data URI, and its natural size in CSS pixels: src, width, height.

    dpi: resolution of the picture; a figure with fewer dots per inch is not enlarged.
    """
    with Image.open(png) as image:
        own_dpi = image.info.get("dpi", (CSS_DPI, CSS_DPI))[0]
        picture = _flatten(image)
    width, height = (round(side * CSS_DPI / own_dpi) for side in picture.size)
    if dpi < own_dpi:
        picture = picture.resize([round(side * dpi / own_dpi) for side in picture.size], Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY, method=2)
    source = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"src": source, "width": width, "height": height}


def _flatten(image: Image.Image) -> Image.Image:
    """Return the image in RGB, with white where it is transparent."""
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")
