"""Pictures of a set and of a run: a labelled grid of images, the loss curve."""

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldd.images import ClassInfo

MAX_IMAGES = 400  # keeps the picture of a thousand classes small
MAX_ROWS = 10  # images of one class
BAND = 20  # classes side by side
# Pixels; smaller images are enlarged by whole factors, larger ones reduced.
SMALLEST_CELL, LARGEST_CELL = 64, 128
HEADER, MARGIN = 16, 2  # pixels

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def draw_grid(images: Tensor, labels: Tensor, classes: Sequence[ClassInfo]) -> Image.Image:
    """Draw one column per class under its name, in bands of 20 classes.

    At most 10 images of a class and 400 in all are drawn; a last line says what is left out.

    Args:
        images: (N, 3, H, H) uint8.
        labels: (N,) in 0..K-1.
        classes: the K classes, ordered by label.
    """
    members = [(labels == info.label).nonzero().flatten().tolist() for info in classes]
    most = max(len(rows) for rows in members)
    shown_rows = max(1, min(most, MAX_ROWS, MAX_IMAGES // len(classes)))
    shown = min(len(classes), MAX_IMAGES // shown_rows)
    columns, bands = min(shown, BAND), -(-shown // BAND)
    size = images.shape[-1]
    cell = min(size * max(1, -(-SMALLEST_CELL // size)), LARGEST_CELL)
    step, band_height = cell + MARGIN, HEADER + shown_rows * (cell + MARGIN)
    cut = shown < len(classes) or shown_rows < most
    canvas = Image.new("RGB", (columns * step + MARGIN, bands * band_height + cut * HEADER + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(11)
    for info, rows in zip(classes[:shown], members, strict=False):
        left, top = MARGIN + info.label % BAND * step, MARGIN + info.label // BAND * band_height
        draw.text((left, top), _fitting(info.name, cell, draw, font), fill="black", font=font)
        for place, row in enumerate(rows[:shown_rows]):
            canvas.paste(shown_cell(images[row], cell), (left, top + HEADER + place * step))
    if cut:
        note = f"{shown} of {len(classes)} classes, {shown_rows} of {most} images each"
        draw.text((MARGIN, bands * band_height + MARGIN), note, fill="black", font=font)
    return canvas


def draw_curve(values: Sequence[float], label: str = "loss") -> Image.Image:
    """Plot a value over training steps, one value a step."""
    import matplotlib  # here: a set's own picture does without it
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(6, 3.5), dpi=100, layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel=label)
        axes.plot(range(1, len(values) + 1), values, linewidth=1)
        axes.grid(alpha=0.3)
        canvas = FigureCanvasAgg(figure)  # not pyplot, which has global state and may need a display
        canvas.draw()  # type: ignore[no-untyped-call]
        rgba = bytes(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        return Image.frombytes("RGBA", canvas.get_width_height(), rgba).convert("RGB")


def as_png(picture: Image.Image) -> bytes:
    """Return the contents of a PNG file."""
    file = BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def data_address(png: bytes) -> str:
    """Return a `data:` address of a PNG file's contents, for pages that hold their pictures themselves."""
    return "data:image/png;base64," + b64encode(png).decode()


def to_picture(image: Tensor) -> Image.Image:
    """Return an image (3, H, W) uint8 as PIL has it."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def shown_cell(image: Tensor, cell: int) -> Image.Image:
    """Return an image (3, H, H) uint8 as a square of `cell` pixels: enlarged in whole pixels, reduced smoothly."""
    size = image.shape[-1]
    picture = to_picture(image)
    if size == cell:
        return picture
    return picture.resize((cell, cell), Image.Resampling.NEAREST if size < cell else Image.Resampling.LANCZOS)


def _fitting(name: str, width: int, draw: ImageDraw.ImageDraw, font: Font) -> str:
    """Return the name on one line, cut to `width` pixels."""
    name = " ".join(name.encode("utf-8", "replace").decode().split())[:100]
    while name and draw.textlength(name, font) > width:
        name = name[:-1]
    return name
