"""Pictures from files: checked, scaled to fit, never cropped or flipped.

Shapes:  size: side of the square picture that the model takes, in pixels
"""

import io
import zlib
from functools import lru_cache, partial
from pathlib import Path

import torch
from PIL import ExifTags, Image  # Pillow comes with torchvision, which requires it
from torch import Tensor

from data.errors import DataError, reason
from data.pixels import UNREADABLE, Crop

MAX_PIXELS = 250_000_000  # of a picture's file; a phone's have up to 200 million
AT_FULL_SIZE = 50_000_000  # a JPEG of more pixels is read at a half, a quarter or an eighth
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, which is lower; see check_format
GREY = (128, 128, 128)  # beside a picture that is not square, behind a transparent one
# Of pixels kept, in the main process and in each of the loader's workers: 43,000 pictures of
# 64 x 64, 1,200 of 384 x 384
CACHE_BYTES = 2**29
PNG, OF_PIXELS = b"\x89PNG\r\n\x1a\n", (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
JPEG, SCAN = b"\xff\xd8", 0xDA  # how a JPEG begins; the marker of its pixels
BESIDE = (0xE0, *range(0xE2, 0xEE), 0xFE)  # markers of texts and profiles, EXIF (0xE1) left out
FLIPS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
TURNS = {k: Image.Transpose[name] for k, name in enumerate(FLIPS.split(), 2)}  # EXIF's orientation


def read_picture(image: Path | bytes | Crop, size: int) -> Tensor:
    """decode_picture, remembered."""
    return reader(size)(image)


@lru_cache
def reader(size: int):
    """decode_picture for pictures of one size: CACHE_BYTES of pixels are kept, those asked for
    last."""
    return lru_cache(CACHE_BYTES // (3 * size**2))(partial(decode_picture, size=size))


def decode_picture(image: Path | bytes | Crop, size: int) -> Tensor:
    """uint8 [3, size, size]. The whole picture, or the whole part, is kept: it is scaled to fit and
    centred on grey, never cropped or flipped."""
    picture = open_picture(image.path if isinstance(image, Crop) else image)
    if isinstance(image, Crop):
        if picture.size != image.whole:
            expected, found = (f"{w} x {h}" for w, h in (image.whole, picture.size))
            raise DataError(f"{image.path}: expected a picture of {expected} pixels, got {found}")
        picture = picture.crop(image.box)
    if picture.size != (size, size):
        scale = size / max(picture.size)
        sides = [max(1, round(side * scale)) for side in picture.size]
        picture = picture.resize(sides, Image.Resampling.BICUBIC)
        square = Image.new("RGB", (size, size), GREY)
        square.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
        picture = square
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, 3).permute(2, 0, 1).contiguous()


def check_format(file: Image.Image, path) -> None:
    """Raises DataError if there are too many pixels, for a small file can unpack to more than the
    memory holds; or if they are floats or 32-bit integers, of which nothing says what is white."""
    if file.width * file.height > MAX_PIXELS:
        pixels = f"{file.width} x {file.height} pixels"
        why = f"{path}: {pixels} are more than the {MAX_PIXELS:,} that are read; make it smaller"
        raise DataError(why, UNREADABLE)
    # Of 16 bits a pixel PNG and PGM make mode "I" in some versions of Pillow
    if file.mode == "F" or file.mode == "I" and file.format not in ("PNG", "PPM"):
        numbers = "floats" if file.mode == "F" else "32-bit integers"
        why = f"its pixels are {numbers} of unknown range; convert it to 8 bits a channel"
        raise DataError(f"{path}: {why}", UNREADABLE)


def read_file(image: Path | bytes, read):
    """read(file) of the picture's file, or of what would be in it, as Pillow opens it: its pixels
    are not read yet. A PNG or JPEG whose texts, colour profile or checksums Pillow refuses is read
    without them. Raises DataError if it is not there, is no picture, or is one that check_format
    refuses."""
    in_memory = isinstance(image, bytes)
    path = "a picture in the data" if in_memory else image

    def attempt(source):
        with Image.open(source) as file:
            check_format(file, path)
            return read(file)

    try:
        try:
            return attempt(io.BytesIO(image) if in_memory else image)
        except (FileNotFoundError, DataError):
            raise
        except Exception:
            content = image if in_memory else image.read_bytes()
            if content.startswith(PNG):
                return attempt(io.BytesIO(pixels_of_png(content)))
            if content.startswith(JPEG):
                return attempt(io.BytesIO(pixels_of_jpeg(content)))
            raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such picture", UNREADABLE) from None
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds: struct.error, zlib.error, IndexError ...
        raise DataError(f"{path}: not a readable picture ({reason(error)})", UNREADABLE) from None


def pixels_of_png(content: bytes) -> bytes:
    """A PNG file without what is beside its pixels, but for EXIF data that are whole."""
    kept, at = [PNG], len(PNG)
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")  # length, name, data, checksum
        name, checksum = content[at + 4 : at + 8], content[end - 4 : end]
        whole = zlib.crc32(content[at + 4 : end - 4]).to_bytes(4, "big") == checksum
        if name in OF_PIXELS or name == b"eXIf" and whole:
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def pixels_of_jpeg(content: bytes) -> bytes:
    """A JPEG file without what is beside its pixels, but for EXIF data."""
    kept, at = [JPEG], len(JPEG)
    while at + 4 <= len(content) and content[at + 1] != SCAN:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")  # marker, length, data
        if content[at + 1] not in BESIDE:
            kept.append(content[at:end])
        at = end
    return b"".join([*kept, content[at:]])


def upright(file: Image.Image) -> Image.Image:
    """The picture, turned as its EXIF data say, where these can be read."""
    # Not in the try, for damaged pixels are an error. A TIFF is turned by it, once, and EXIF data
    # that stand behind a PNG's pixels are found
    file.load()
    try:
        turn = TURNS.get(file.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # of many kinds, as in read_file; nothing is wrong with the pixels
        turn = None
    return file if turn is None else file.transpose(turn)


def check_head(image: Tensor | Path | bytes | Crop) -> None:
    """Raises DataError if the picture's file, if it has one, cannot be opened."""
    path = getattr(image, "path", image)
    if isinstance(path, Path):
        read_file(path, lambda file: None)


def can_open(image: Tensor | Path | bytes | Crop) -> bool:
    """Is the picture's file, if it has one, there now? What the cache holds does not count."""
    try:
        check_head(image)
    except DataError:
        return False
    return True


@lru_cache(maxsize=1)  # the parts of a picture are read one after the other; one may take 750 MB
def open_picture(image: Path | bytes) -> Image.Image:
    """The whole picture in RGB, as a viewer would show it."""
    return read_file(image, in_rgb)


def in_rgb(file: Image.Image) -> Image.Image:
    if file.width * file.height > AT_FULL_SIZE:
        file.draft(file.mode, (4096, 4096))  # at least so large; of a JPEG only
    picture = upright(file)
    # 16 bits a pixel. The format says that white is 65535; a camera's 12 bits that were not scaled
    # to that are dark here as in a viewer
    if picture.mode.startswith("I"):
        picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if picture.has_transparency_data:
        grey = Image.new("RGBA", picture.size, (*GREY, 255))
        picture = Image.alpha_composite(grey, picture.convert("RGBA"))
    return picture.convert("RGB")
