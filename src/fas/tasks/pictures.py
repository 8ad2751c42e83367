"""Images from where they are kept, and as a model's processor encodes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from fas.errors import DataError
from fas.progress import Progress
from fas.tasks.reading.contents import checked
from fas.tasks.reading.names import shown

MANY = 1000
"""Images: looking at so many takes a second or more, and is told."""
_ORIENTATION = 0x0112
"""The tag of a photograph that says which side is up."""
MOST_KEPT = 1 << 30
"""Bytes of encoded images; what is beyond is encoded again each time."""


@dataclass(frozen=True)
class Stored:
    """An image of a data set of the hub, decoded when it is asked for; rows with one ``name`` show the same image."""

    name: str
    table: Any = field(compare=False, repr=False)
    column: str = field(compare=False)
    row: int = field(compare=False)
    place: str = field(compare=False, default="")
    """Table and row, for sentences."""


Picture = Path | Stored


def identity(picture: Picture) -> str:
    """The same for the same image, under whatever path."""
    return picture.name if isinstance(picture, Stored) else str(picture.resolve())


def told_by(picture: Picture) -> tuple[Any, ...]:
    """What tells it from other images, without reading it."""
    return (picture.name,) if isinstance(picture, Stored) else (picture.name, picture.stat().st_size)


def opened(picture: Picture) -> Any:
    """The image in RGB. Raises `DataError` for one that cannot be read."""
    return _read(picture, lambda image: image.convert("RGB"))


def size_of(picture: Picture) -> tuple[int, int]:
    """Width and height; of a file its header is enough. Raises `DataError` for a file that is no image."""
    return _read(picture, lambda image: image.size)


def _read(picture: Picture, what: Callable[[Any], Any]) -> Any:
    from PIL import Image, ImageOps

    try:
        if isinstance(picture, Stored):
            return what(_eight_bits(picture.table[picture.row][picture.column]))
        checked(picture)
        with Image.open(picture) as image:
            turned = image.getexif().get(_ORIENTATION, 1) != 1  # as `datasets` turns those of the hub
            return what(ImageOps.exif_transpose(_eight_bits(image)) if turned else _eight_bits(image))
    except DataError:
        raise
    except Exception as error:  # decoders raise many unrelated types on broken files
        reason = shown(error or type(error).__name__)[:200]
        where = picture.place or picture.name if isinstance(picture, Stored) else picture.name
        raise DataError(f"{shown(where)} is no image that can be read: {reason}") from None


def _decoded(image: Any) -> None:
    """Read ``image`` to its end; a photograph at an eighth of its size, which takes a fraction of the time."""
    image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
    image.load()


def _eight_bits(image: Any) -> Any:
    """``image``; raises `DataError` for one with more bits a channel, which would be cut off and not scaled."""
    if image.mode.startswith(("I", "F")):
        name = shown(getattr(image, "filename", "") or "an image")
        raise DataError(f"{name} has more than 8 bits a channel (mode {image.mode}); save it with 8")
    return image


def check_images(pictures: Iterable[Picture], progress: Progress) -> None:
    """Raise `DataError` for the first of ``pictures`` that cannot be read to its end, before anything is computed."""
    if find_spec("PIL") is None:  # who has no pillow is told so when a model is loaded
        return
    found = list(dict.fromkeys(pictures))
    large = len(found) >= MANY
    if large:
        progress.start("looking at images", len(found))
    for picture in found:
        _read(picture, _decoded)
        if large:
            progress.advance()
    if large:
        progress.done()


@dataclass(frozen=True)
class Pictures:
    """Encoded images, as many as `MOST_KEPT` holds, and sizes: shared by all examples of a task."""

    processor: Any
    """Of images, or of images and text."""
    kept: dict[Picture, dict[str, Tensor]] = field(default_factory=dict)
    sizes: dict[Picture, tuple[int, int]] = field(default_factory=dict)

    def encoded(self, picture: Picture) -> dict[str, Tensor]:
        """Arguments of the model for one image, ``[1, …]``."""
        if picture in self.kept:
            return self.kept[picture]
        encode = getattr(self.processor, "image_processor", self.processor)
        found = dict(encode(images=[opened(picture)], return_tensors="pt"))
        if (len(self.kept) + 1) * sum(value.nbytes for value in found.values()) <= MOST_KEPT:
            self.kept[picture] = found
        return found

    def size(self, picture: Picture) -> tuple[int, int]:
        """Width and height."""
        if picture not in self.sizes:
            self.sizes[picture] = size_of(picture)
        return self.sizes[picture]
