"""What a picture may be beside a file: a part of one, or a tensor.

Shapes:  size: side of the square picture that the model takes, in pixels
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from data.errors import DataError

UNREADABLE = "unreadable picture"  # the kind of a DataError


@dataclass(frozen=True)
class Crop:
    """A part of a picture's file. box: left, top, right, bottom in pixels. whole: the width and
    height that the file must have."""

    path: Path
    box: tuple[int, int, int, int]
    whole: tuple[int, int]


def picture_key(image: Tensor | Path | bytes | Crop):
    """Equal for images that are the same picture. A tensor is known by where its pixels lie and how
    they are read, so that two views of one memory are two pictures, and by nothing once it is gone:
    compare keys only while their images are held."""
    if isinstance(image, Tensor):
        return image.data_ptr(), image.shape, image.stride(), image.dtype
    return image


def scaled(image: Tensor, size: int) -> Tensor:
    """uint8 [3, size, size] of a picture of any side, uint8 [3, side, side]."""
    side = image.shape[-1] if image.ndim else 0
    if image.dtype != torch.uint8 or image.shape != (3, side, side) or side == 0:
        found = f"{image.dtype} {list(image.shape)}".removeprefix("torch.")
        expected = f"uint8 [3, side, side], such as [3, {size}, {size}]"
        raise DataError(f"a tensor that is a picture must be {expected}; got {found}")
    if side == size:
        return image
    pixels = F.interpolate(image[None].float(), size=(size, size), mode="area")[0]
    return pixels.round().to(torch.uint8)
