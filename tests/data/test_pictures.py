"""Pictures from files: read whole, as a viewer shows them, or named."""

import pytest
import torch
from PIL import Image

import data
from data import DataError, pictures
from data.pictures import PictureCache, open_picture, read_picture
from data.shapes import Shapes


def test_the_whole_picture_is_kept(tmp_path):
    picture = Image.new("RGB", (80, 20), "red")
    picture.paste((0, 0, 255), (0, 0, 20, 20))
    picture.paste((0, 255, 0), (60, 0, 80, 20))
    picture.save(tmp_path / "wide.png")
    read = read_picture(tmp_path / "wide.png", 64)
    assert read.shape == (3, 64, 64)
    assert (read[:, :20] == 128).all() and (read[:, -20:] == 128).all()
    # Blue left, green right: not flipped, not cropped
    assert read[2, 32, 2] > 200 and read[1, 32, 61] > 200 and read[0, 32, 32] > 200


@pytest.mark.parametrize("mode", ["P", "L", "RGBA", "1", "CMYK", "I;16"])
def test_pictures_of_any_mode(tmp_path, mode):
    name = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new(mode, (10, 30)).save(name)
    assert read_picture(name, 32).shape == (3, 32, 32)


def test_a_picture_of_another_size_is_scaled(tmp_path):
    example = Shapes().heldout("test", 1)[0]
    assert data.pixels_of(example.images[0], 32, "").shape == (3, 32, 32)
    assert data.pixels_of(example.images[0], 64, "") is example.images[0]


@pytest.mark.parametrize("shape", [
    (3, 32, 64), (3, 64, 32), (64, 64, 3), (1, 64, 64), (4, 64, 64), (64, 64), (1, 3, 64, 64),
    (3,), (), (3, 0, 0),
])  # fmt: skip
def test_a_tensor_of_another_shape_is_named(shape):
    for size in (32, 64):
        with pytest.raises(DataError) as found:
            data.pixels_of(torch.zeros(shape, dtype=torch.uint8), size, "entry 3")
        expected = f"uint8 [3, side, side], such as [3, {size}, {size}]; got uint8 {list(shape)}"
        assert str(found.value) == f"entry 3: a tensor that is a picture must be {expected}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.int8, torch.bool])
def test_a_tensor_of_another_dtype_is_named(dtype):
    name = str(dtype).removeprefix("torch.")
    for size in (32, 64):
        with pytest.raises(DataError, match=rf"got {name} \[3, 64, 64\]$"):
            data.pixels_of(torch.ones(3, 64, 64, dtype=dtype), size, "")


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\x00" * 40])
def test_a_broken_picture_is_named(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=r"x.png: not a readable picture"):
        read_picture(tmp_path / "x.png", 32)


def test_a_truncated_picture_is_named(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:1500])
    with pytest.raises(DataError, match=r"x.png: not a readable picture"):
        read_picture(tmp_path / "x.png", 32)
    with pytest.raises(DataError, match=r"y.png: no such picture"):
        read_picture(tmp_path / "y.png", 32)


@pytest.mark.parametrize("mode,numbers", [("F", "floats"), ("I", "32-bit integers")])
def test_numbers_of_unknown_range_are_refused_before_and_in_training(tmp_path, mode, numbers):
    """0 to 1 and 0 to 255 are both usual: read as the one, the other is black or white."""
    Image.new(mode, (8, 8), 1).save(tmp_path / "x.tif")
    for read in (lambda path: read_picture(path, 32), pictures.check_head):
        with pytest.raises(DataError, match=f"x.tif: its pixels are {numbers}.* 8 bits") as found:
            read(tmp_path / "x.tif")
        assert "\n" not in str(found.value)


def test_pictures_are_read_as_a_viewer_shows_them(tmp_path):
    picture = Image.new("RGB", (32, 32), "red")
    picture.paste((0, 0, 255), (0, 16, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "phone.png", exif=exif)
    assert read_picture(tmp_path / "phone.png", 32)[2, 4, 16] > 200
    shades = b"".join((x * 2048).to_bytes(2, "little") for x in range(32))
    deep = Image.frombytes("I;16", (32, 32), shades * 32)
    deep.save(tmp_path / "deep.png")
    deep.save(tmp_path / "deep.tif")
    (tmp_path / "deep.pgm").write_bytes(b"P5 32 32 65535\n" + deep.tobytes("raw", "I;16B"))
    for name in ("deep.png", "deep.tif", "deep.pgm"):
        row = read_picture(tmp_path / name, 32)[0, 5].tolist()  # of all 16 bits
        assert row == sorted(row) and len(set(row)) > 25 and row[16] in range(120, 136), name


def test_pictures_are_kept_up_to_a_number_of_bytes(tmp_path, monkeypatch):
    """Those that were asked for last, whatever their sizes."""
    names = [tmp_path / f"{i}.png" for i in range(4)]
    for name in names:
        Image.new("RGB", (32, 32)).save(name)
    decoded, decode, cache = [], pictures.decode_picture, PictureCache()

    def spy(image, size):
        decoded.append(names.index(image))
        return decode(image, size)

    monkeypatch.setattr(pictures, "decode_picture", spy)
    monkeypatch.setattr(pictures, "CACHE_BYTES", 3 * 3 * 32 * 32)
    for i in (0, 1, 2, 0, 3, 0, 1):  # 3 takes the place of 1, 1 that of 2
        cache(names[i], 32)
    assert decoded == [0, 1, 2, 3, 1] and cache.bytes == 3 * 3 * 32 * 32
    cache(names[0], 48)  # as large as 2.25 of the others
    held = [pixels.nbytes for pixels in cache.pixels.values()]
    assert held == [3 * 48 * 48] and cache.bytes == sum(held)
    assert open_picture.cache_info().maxsize == 1  # whole pictures may be large
