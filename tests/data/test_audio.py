"""WAV files of one's own, and sound as a picture."""

import struct
import wave

import pytest
import torch

from data import DataError, audio


def tone(hertz: float, rate: int = 8000, seconds: float = 2) -> torch.Tensor:
    t = torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    return 0.5 * torch.sin(2 * torch.pi * hertz * t)


def save(path, channels: list[torch.Tensor], width: int = 2, rate: int = 8000):
    """A WAV file of PCM samples of `width` bytes."""
    numbers = (torch.stack(channels, 1) * (2 ** (8 * width - 1) - 1)).round().to(torch.int64)
    eight_bytes = (numbers + 128 * (width == 1)).flatten()[:, None].view(torch.uint8)
    with wave.open(str(path), "wb") as file:
        file.setparams((len(channels), width, rate, 0, "NONE", ""))
        file.writeframes(eight_bytes[:, :width].contiguous().numpy().tobytes())
    return path


def extensible(plain: bytes, kind: bytes) -> bytes:
    """The same file with a header of format 65534; kind: the sub-format's 16 bytes."""
    head = struct.pack("<IH", 40, 65534) + plain[22:36] + struct.pack("<HHI", 22, 16, 0) + kind
    rest = b"WAVEfmt " + head + plain[36:]
    return b"RIFF" + struct.pack("<I", len(rest)) + rest


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_is_read_mono_and_stereo(tmp_path, width):
    """And with an extensible header, as ffmpeg writes 24 bits: Python 3.11's wave does not know
    it."""
    wanted, file = torch.cat([torch.tensor([1.0, -1.0, 0.0]), tone(440)[3:]]), tmp_path / "x.wav"
    for channels in ([wanted], [tone(440) * 2, tone(440) * 0], [wanted] * 3):
        content, expected = save(file, channels, width).read_bytes(), torch.stack(channels).mean(0)
        for file_content in (content, extensible(content, audio.PCM)):
            file.write_bytes(file_content)
            sound, done = audio.read(file)
            assert sound.shape == (audio.SAMPLES,) and sound.dtype == torch.float32 and done == ""
            assert (sound - expected).abs().max() < 1.1 / 2 ** (8 * width - 1) + 1e-6


@pytest.mark.parametrize("seconds,rate,n_bytes,heard,says", [
    (2, 4000, None, 2, "4000 samples a second are made 8000"),
    (2, 11025, None, 2, "11025 samples a second are made 8000"),
    (0.5, 8000, None, 0.5, "its 0.5 s are followed by silence, up to 2 s"),
    (3, 16000, None, 2,
     "16000 samples a second are made 8000; only the first 2 of its 3.0 s are heard"),
    (2, 8000, 44 + 4 * 8000 + 3, 1, "the file is cut off: of its 2.0 s only 1.00 s are there, and "
     "silence follows, up to 2 s"),
])  # fmt: skip
def test_any_rate_and_length_becomes_two_seconds_at_8_khz_and_it_is_said(
    tmp_path, seconds, rate, n_bytes, heard, says
):
    file = save(tmp_path / "x.wav", [tone(440, rate, seconds)] * 2, rate=rate)
    file.write_bytes(file.read_bytes()[:n_bytes])
    sound, done = audio.read(file)
    n = round(8000 * heard)
    assert (sound - tone(440))[100 : n - 100].abs().max() < 0.01 and not sound[n:].any()
    assert done == f"{file}: {says}"


def test_what_8_khz_cannot_hold_is_gone_and_not_folded_back(tmp_path):
    sound, _ = audio.read(save(tmp_path / "x.wav", [tone(6000, 48000)], rate=48000))
    assert sound.abs()[100:-100].max() < 0.01


GOOD = b"RIFF\x24\x06\0\0WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
GOOD += b"data" + struct.pack("<I", 1600) + bytes(1600)


@pytest.mark.parametrize("content,says", [
    (None, "no such file"), (b"this is no sound", "not a readable WAV"),
    (b"", "it ends too early"), (GOOD[:30], "it ends too early"),
    (GOOD[:20] + b"\3\0" + GOOD[22:], "save it as plain 16-bit PCM"),  # floats
    (extensible(GOOD, audio.PCM.replace(b"\1", b"\3")), "save it as plain 16-bit PCM"),
    (GOOD[:40] + bytes(4), "no sound in it"),
    (GOOD[:24] + struct.pack("<I", 7) + GOOD[28:], "7 samples a second; 1000 to 768000 are read"),
    (GOOD[:34] + struct.pack("<H", 40) + GOOD[36:], "40 bits a sample"),
])  # fmt: skip
def test_what_cannot_be_read_is_one_error_that_names_the_file(tmp_path, content, says):
    file = tmp_path / "x.wav"
    if content is not None:
        file.write_bytes(content)
    for path, message in ((file, says), (tmp_path, "Is a directory")):
        with pytest.raises(DataError, match=message) as error:
            audio.read(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


# --- As a picture


def test_a_tone_is_a_line_at_its_band_and_low_is_at_the_bottom():
    for hertz in (200, 800, 2000, 3500):
        picture = audio.picture_of(tone(hertz).float()[None])
        assert picture.shape == (1, 3, 64, 64) and picture.dtype == torch.uint8
        assert torch.equal(picture[0, 0], picture[0, 2])
        line = picture[0, 0, :, 5:-5].float().mean(1).argmax()
        # 2595 log10(1 + f / 700) of the row's middle is the tone's, within a band
        mel = 2595 * torch.log10(torch.tensor(1 + hertz / 700)) / (2146.06 / 65)
        assert abs((64 - line) - mel) < 1.01


def test_a_click_is_a_column_at_its_time():
    for column in (0, 17, 63):
        sound = torch.zeros(1, audio.SAMPLES)
        sound[0, column * audio.HOP + audio.HOP // 2] = 1
        assert audio.picture_of(sound)[0, 0].float().mean(0).argmax() == column


def test_the_level_of_a_recording_does_not_matter_and_silence_is_black():
    sound = torch.randn(1, audio.SAMPLES, generator=torch.Generator().manual_seed(0)) / 10
    loud, quiet, none = audio.picture_of(torch.cat([sound, sound / 50, 0 * sound])).int()
    assert (loud - quiet).abs().max() <= 1 and not none.any()
