"""Pictures from files: read whole, as a viewer shows them, or named."""

import io
import random
import struct
import zlib

import pytest
import torch
from PIL import Image

import data
from data import Crop, DataError, pictures
from data.pictures import open_picture, read_picture


def saved(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def exif(*tags: bytes) -> bytes:
    """EXIF data that say "turn me by 90 degrees", and more tags of 12 bytes."""
    turn = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1 + len(tags))
    return head + turn + b"".join(tags) + bytes(4)


def chunk(name: bytes, content: bytes) -> bytes:
    """Of a PNG."""
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def test_the_whole_picture_is_kept_or_the_whole_part(tmp_path):
    """Scaled to fit and centred on grey; not flipped, not cropped."""
    file = tmp_path / "wide.png"
    picture = Image.new("RGB", (80, 20), "red")
    picture.paste((0, 0, 255), (0, 0, 20, 20))
    picture.paste((0, 255, 0), (60, 0, 80, 20))
    picture.save(file)
    read = read_picture(file, 64)
    assert read.shape == (3, 64, 64)
    assert (read[:, :20] == 128).all() and (read[:, -20:] == 128).all()
    assert read[2, 32, 2] > 200 and read[1, 32, 61] > 200 and read[0, 32, 32] > 200
    part = read_picture(Crop(file, (50, 0, 70, 20), (80, 20)), 20)
    assert (part[1] > 0).nonzero().tolist() == [[y, x] for y in range(20) for x in range(10, 20)]
    message = "wide.png: expected a picture of 20 x 80 pixels, got 80 x 20"
    with pytest.raises(DataError, match=message):
        read_picture(Crop(file, (0, 0, 9, 9), (20, 80)), 20)


@pytest.mark.parametrize("name,mode", [
    ("x.png", "P"), ("x.png", "L"), ("x.png", "RGBA"), ("x.tif", "CMYK"), ("x.png", "I;16"),
    ("x.tif", "I;16"), ("x.pgm", "I;16"),
])  # fmt: skip
def test_from_black_to_white_in_any_mode(tmp_path, name, mode):
    shades = [x * (2048 if mode == "I;16" else 8) for x in range(32)]
    picture = Image.new("I;16" if mode == "I;16" else "L", (32, 32))
    picture.putdata(shades * 32)
    (picture if mode == "I;16" else picture.convert(mode)).save(tmp_path / name)
    row = read_picture(tmp_path / name, 32)[0, 5].tolist()
    assert row == sorted(row) and len(set(row)) > 25 and row[16] in range(120, 136)


@pytest.mark.parametrize("shape,dtype", [
    ((3, 32, 64), torch.uint8), ((64, 64, 3), torch.uint8), ((1, 64, 64), torch.uint8),
    ((64, 64), torch.uint8), ((), torch.uint8), ((3, 0, 0), torch.uint8),
    ((3, 64, 64), torch.float32),
])  # fmt: skip
def test_a_tensor_is_scaled_or_what_it_is_is_said(shape, dtype):
    square = torch.zeros(3, 64, 64, dtype=torch.uint8)
    assert data.pixels_of(square, 64, "") is square
    assert data.pixels_of(square, 32, "").shape == (3, 32, 32)
    with pytest.raises(DataError) as found:
        data.pixels_of(torch.zeros(shape, dtype=dtype), 64, "entry 3")
    got = f"{dtype} {list(shape)}".removeprefix("torch.")
    expected = f"uint8 [3, side, side], such as [3, 64, 64]; got {got}"
    assert str(found.value) == f"entry 3: a tensor that is a picture must be {expected}"


NOISE = saved(Image.effect_noise((64, 64), 50), "PNG")
FLOATS, INTEGERS = (saved(Image.new(mode, (8, 8), 1), "TIFF") for mode in "FI")


@pytest.mark.parametrize("content,says", [
    (None, "no such picture"), (b"", "not a readable picture"),
    (NOISE[:1500], "not a readable picture"),
    # 0 to 1 and 0 to 255 are both usual: read as the one, the other is black or white
    (FLOATS, "its pixels are floats of unknown range.* 8 bits"),
    (INTEGERS, "its pixels are 32-bit integers of unknown range.* 8 bits"),
])  # fmt: skip
def test_a_picture_that_cannot_be_read_is_named(tmp_path, content, says):
    file = tmp_path / "x.png"
    if content is not None:
        file.write_bytes(content)
    # All but what is cut off is known from the head alone
    for read in (open_picture, *[pictures.check_head] * (content != NOISE[:1500])):
        with pytest.raises(DataError, match=rf"x.png: {says}"):
            read(file)


LONG, TURN = zlib.compress(bytes(3_000_000)), chunk(b"eXIf", exif()[6:])
A_WORD_FOR_A_RATIO = struct.pack("<HHII", 0x011A, 2, 1, 0)  # Pillow reads it, and cannot write it


@pytest.mark.parametrize("name,options,at,added,turned", [
    ("x.webp", {"exif": b"Exif\0\0garbage", "lossless": True}, 0, b"", False),
    ("x.png", {"exif": b"garbage"}, 0, b"", False),
    ("x.jpg", {"exif": exif(A_WORD_FOR_A_RATIO), "quality": 95}, 0, b"", True),
    ("x.png", {}, 33, chunk(b"zTXt", b"comment\0\0" + LONG), False),
    ("x.png", {"exif": exif()}, 33, chunk(b"iCCP", b"profile\0\0" + LONG), True),
    ("x.png", {}, -12, chunk(b"iTXt", b"comment\0\1\0\0\0" + LONG), False),  # after the pixels
    ("x.png", {}, 33, chunk(b"tEXt", b"a\0b")[:-1] + b"?", False),  # its checksum is wrong
    ("x.png", {}, -12, chunk(b"zTXt", b"a\0\0" + LONG) + TURN, True),
    ("x.png", {}, -12, chunk(b"zTXt", b"a\0\0" + LONG) + TURN[:-1] + b"?", False),
    ("x.jpg", {"exif": exif(), "quality": 95}, 2, b"\xff\xe2\0\x0eICC_PROFILE\0", True),
    ("x.tif", {"tiffinfo": {0x0112: 6}}, 0, b"", True),
])  # fmt: skip
def test_pixels_are_read_whatever_is_wrong_beside_them(tmp_path, name, options, at, added, turned):
    """Of EXIF data, texts and colour profiles; and turned where it is known how."""
    picture = Image.new("RGB", (32, 32), "red")
    picture.paste((0, 0, 255), (0, 16, 32, 32))  # below; at the left, when it is turned
    picture.paste((0, 0, 0), (16, 16, 32, 32))  # the quarter at its right; then below
    picture.save(tmp_path / name, **options)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:at] + added + content[at:])
    pictures.check_head(tmp_path / name)
    places = ((8, 8), (8, 24), (24, 8), (24, 24))
    red, _, blue = (
        [channel[place] > 150 for place in places] for channel in read_picture(tmp_path / name, 32)
    )
    assert red == ([0, 1, 0, 1] if turned else [1, 1, 0, 0])
    assert blue == ([1, 0, 0, 0] if turned else [0, 0, 1, 0])


def test_pictures_of_phones_are_read_and_larger_ones_named(tmp_path):
    """50 million pixels and more, up to 200; those of a JPEG are not all unpacked."""
    file = tmp_path / "x.jpg"
    Image.new("L", (16320, 12240), 200).save(file)
    assert (read_picture(file, 32)[0, 8:24] - 200).abs().max() < 3
    assert max(open_picture(file).size) < 16320
    # A PNG of a few bytes that unpacks to 256 million
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 16_000, 16_000, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)
    for read in (pictures.check_head, open_picture.__wrapped__):
        with pytest.raises(DataError, match="x.jpg: 16000 x 16000 pixels are more than the 250,0"):
            read(file)


def test_pictures_are_kept_up_to_a_number_of_bytes():
    """Of whole ones, which may be large, one at a time is kept."""
    kept = pictures.reader(64).cache_info().maxsize * 3 * 64 * 64
    assert 0.9 * pictures.CACHE_BYTES < kept <= pictures.CACHE_BYTES
    assert open_picture.cache_info().maxsize == 1


def mutated(original: bytes, r: random.Random) -> bytes:
    """A few pieces changed, cut out or doubled, or the end missing."""
    out = bytearray(original)
    for _ in range(r.choice((1, 1, 2, 5))):
        at, n = r.randrange(9, len(out) - 9), r.randrange(1, 9)
        strange = bytes(r.choice((0, 255, 127, 128)) for _ in range(n))
        out[at : at + n] = r.choice((strange, strange, b"", 2 * out[at : at + n]))
    return bytes(out if r.random() < 0.7 else out[: r.randrange(9, len(out))])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind,mode", [
    ("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("JPEG", "RGB"), ("GIF", "P"), ("BMP", "RGB"),
    ("TIFF", "RGB"), ("WEBP", "RGB"),
])  # fmt: skip
def test_of_damaged_files_every_one_is_read_or_an_error(kind, mode, tmp_path):
    """By the hundred; never another exception."""
    r, bad = random.Random(kind + mode), 0
    original = saved(Image.effect_noise((23, 17), 90).convert(mode), kind)
    for i in range(250):
        path = tmp_path / f"{i}.x"
        path.write_bytes(mutated(original, r))
        try:
            assert read_picture(path, 32).shape == (3, 32, 32)
        except DataError as error:
            bad += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert bad > 10
