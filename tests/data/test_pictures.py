"""Pictures from files: read whole, as a viewer shows them, or named."""

import io
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


@pytest.mark.parametrize("mode", ["P", "L", "RGBA", "1", "CMYK"])
def test_pictures_of_any_mode(tmp_path, mode):
    name = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new(mode, (10, 30)).save(name)
    assert read_picture(name, 32).shape == (3, 32, 32)


def test_of_16_bits_all_are_read(tmp_path):
    shades = b"".join((x * 2048).to_bytes(2, "little") for x in range(32))
    deep = Image.frombytes("I;16", (32, 32), shades * 32)
    deep.save(tmp_path / "deep.png")
    deep.save(tmp_path / "deep.tif")
    (tmp_path / "deep.pgm").write_bytes(b"P5 32 32 65535\n" + deep.tobytes("raw", "I;16B"))
    for name in ("deep.png", "deep.tif", "deep.pgm"):
        row = read_picture(tmp_path / name, 32)[0, 5].tolist()
        assert row == sorted(row) and len(set(row)) > 25 and row[16] in range(120, 136), name


@pytest.mark.parametrize("shape,dtype", [
    *[(shape, torch.uint8) for shape in (
        (3, 32, 64), (64, 64, 3), (1, 64, 64), (64, 64), (1, 3, 64, 64), (), (3, 0, 0),
    )],
    *[((3, 64, 64), dtype) for dtype in (torch.float32, torch.bool)],
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


def test_pictures_are_kept_up_to_a_number_of_bytes(monkeypatch):
    """Of whole ones, which may be large, one at a time is kept."""
    monkeypatch.setattr(pictures, "CACHE_BYTES", 10 * 3 * 32 * 32)
    pictures.reader.cache_clear()
    sizes = [pictures.reader(size).cache_info().maxsize for size in (32, 64)]
    assert sizes == [10, 2] and open_picture.cache_info().maxsize == 1
    pictures.reader.cache_clear()
