"""Images inside the page: each is a PNG in a `data:` URL, under the name of its class."""

from dataclasses import dataclass

from ldd.artefact.picture import as_png, data_address, to_picture
from ldd.artefact.set import DistilledSet

MAX_IMAGES = 100  # of one set: what a person looks through, and a phone can hold


@dataclass(frozen=True)
class Picture:
    """One image of a set."""

    address: str  # `data:` URL
    name: str  # of its class
    text: str  # describes it to those who do not see it


@dataclass(frozen=True)
class Gallery:
    """The first images of each class of a set, class-major."""

    pictures: tuple[Picture, ...]
    size: int  # height and width in pixels
    note: str  # what is left out; empty where nothing is


def picture_of(content: bytes, name: str, text: str) -> Picture:
    """Return a PNG file's bytes as a picture of the page."""
    return Picture(data_address(content), name, text)


def gallery(distilled: DistilledSet) -> Gallery:
    """Return at most 100 images: as many of each class as fit; of very many classes, one of each of the first 100."""
    most = max(distilled.counts)
    per_class = max(1, min(most, MAX_IMAGES // distilled.num_classes))
    classes = distilled.classes[: MAX_IMAGES // per_class]
    pictures = []
    for info in classes:
        rows = (distilled.labels == info.label).nonzero().flatten().tolist()[:per_class]
        for place, row in enumerate(rows):
            text = f"{info.name}, image {place + 1} of its class"
            pictures.append(picture_of(as_png(to_picture(distilled.images[row])), info.name, text))
    cut = per_class < most or len(classes) < distilled.num_classes
    note = (
        f"{len(classes)} of {distilled.num_classes} classes, {per_class} of {most} images each" if cut else ""
    )
    return Gallery(tuple(pictures), distilled.image_size, note)
