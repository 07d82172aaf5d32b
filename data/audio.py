"""Sound as a picture: log-mel spectrograms, and WAV files of one's own.

A sound is 2 s at 8 kHz. Its picture is 64 x 64: a column is 31 ms, a row one of 64 bands evenly
spaced on the mel scale up to 4 kHz, low ones at the bottom, and a grey level 60/255 dB below the
loudest place of the sound. With patches of 16 x 16 an image token is half a second of a quarter of
the bands.

Shapes:  S sounds
"""

import io
import wave
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from data.errors import DataError

RATE, SECONDS, SIZE = 8000, 2, 64  # samples a second; length; side of the picture
SAMPLES = RATE * SECONDS
HOP, WINDOW = SAMPLES // SIZE, 512  # samples from column to column; samples that a column looks at
RANGE = 60  # dB from black to white
RATES = range(1000, 768_001)  # of files
PCM = bytes.fromhex("0100000000001000800000aa00389b71")  # of an extensible header, the sub-format


def mel_matrix() -> Tensor:
    """float32 [SIZE, WINDOW // 2 + 1]: what each band, a triangle of height 1, takes of each
    frequency."""
    top = torch.tensor(RATE / 2)
    mel = torch.linspace(0, 2595 * torch.log10(1 + top / 700), SIZE + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)  # Hz
    low, middle, high = (edges[i : i + SIZE, None] for i in range(3))
    frequency = torch.linspace(0, RATE / 2, WINDOW // 2 + 1)
    rise, fall = (frequency - low) / (middle - low), (high - frequency) / (high - middle)
    return torch.minimum(rise, fall).clamp(min=0)


MEL = mel_matrix()


def spectrogram(sound: Tensor) -> Tensor:
    """Power, float32 [S, SIZE bands from low to high, SIZE columns], of sound [S, SAMPLES]. Column
    t is centred on sample (t + 1/2) * HOP."""
    padded = F.pad(sound, [(WINDOW - HOP) // 2] * 2)
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(padded, WINDOW, HOP, window=window, center=False, return_complex=True)
    return MEL @ spectrum.abs().square()


def picture_of(sound: Tensor) -> Tensor:
    """uint8 [S, 3, SIZE, SIZE]: the spectrogram in dB below its maximum, so that recordings of any
    level look alike; three equal channels."""
    power = spectrogram(sound).flip(1)
    below = 10 * torch.log10(power / power.amax((1, 2), keepdim=True).clamp(min=1e-10) + 1e-10)
    grey = ((1 + below / RANGE).clamp(min=0) * 255).round().to(torch.uint8)
    return grey[:, None].expand(-1, 3, -1, -1)


def write(file, sound: Tensor) -> None:
    """A sound [SAMPLES] of values from -1 to 1 as a WAV file, 16 bits, mono. file: its path, or a
    file that is open for writing."""
    with wave.open(file if hasattr(file, "write") else str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((sound.clamp(-1, 1) * 32767).round().to(torch.int16).numpy().tobytes())


def opened(path: Path) -> wave.Wave_read:
    """A WAV file. An extensible header, which ffmpeg writes for 24 bits, is made a plain one where
    its samples are PCM: before Python 3.12 the standard library does not know it."""
    with open(path, "rb") as file:
        head = file.read(60)
        if head[12:16] + head[20:22] + head[44:] == b"fmt \xfe\xff" + PCM:
            return wave.open(io.BytesIO(head[:20] + PCM[:2] + head[22:] + file.read()))
    return wave.open(str(path), "rb")


def read(path: Path) -> tuple[Tensor, str]:
    """The first 2 s of a WAV file (PCM of 8, 16, 24 or 32 bits, any number of channels, 1 to 768
    kHz) as a sound [SAMPLES], and what was done to it in one line, or "" if nothing was. Raises
    DataError if it cannot be read."""
    try:
        with opened(path) as file:
            channels, width, rate, n_frames = file.getparams()[:4]
            frames = file.readframes(SECONDS * rate) if rate in RATES else b""
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: not a readable WAV file ({error.strerror})") from None
    except Exception as error:  # wave.Error, EOFError, struct.error ...
        why = f"{path}: not a readable WAV file ({str(error) or 'it ends too early'})"
        raise DataError(f"{why}; save it as plain 16-bit PCM, as most programs can") from None
    if width > 4:
        raise DataError(
            f"{path}: {8 * width} bits a sample; save it as PCM of 16 bits, 8 to 32 are read"
        )
    if rate not in RATES:
        raise DataError(f"{path}: {rate} samples a second; {RATES[0]} to {RATES[-1]} are read")
    whole = len(frames) // (channels * width)
    if whole == 0:
        raise DataError(f"{path}: there is no sound in it")
    samples = values(frames[: whole * channels * width], width).view(-1, channels).mean(1)
    sound = resampled(F.pad(samples, (0, SECONDS * rate - whole)), rate)
    done = [f"{rate} samples a second are made {RATE}"] if rate != RATE else []
    if whole < min(n_frames, SECONDS * rate):
        done.append(
            f"the file is cut off: of its {n_frames / rate:.1f} s only {whole / rate:.2f} s are "
            f"there, and silence follows, up to {SECONDS} s"
        )
    elif n_frames > SECONDS * rate:
        done.append(f"only the first {SECONDS} of its {n_frames / rate:.1f} s are heard")
    elif whole < SECONDS * rate:
        done.append(f"its {whole / rate:.1f} s are followed by silence, up to {SECONDS} s")
    return sound, f"{path}: {'; '.join(done)}" if done else ""


def values(frames: bytes, width: int) -> Tensor:
    """float32, -1 to 1, of PCM samples of `width` bytes: unsigned if one, else signed and little-
    endian."""
    part = torch.frombuffer(bytearray(frames), dtype=torch.uint8).view(-1, width)
    part = part ^ 128 if width == 1 else part
    return F.pad(part, (4 - width, 0)).view(torch.int32)[:, 0] / 2**31


def resampled(samples: Tensor, rate: int) -> Tensor:
    """SECONDS of samples at `rate`, at RATE: frequencies that both can hold stay as they are."""
    if rate == RATE:
        return samples
    spectrum = torch.fft.rfft(samples)[: SAMPLES // 2]
    return torch.fft.irfft(spectrum, SAMPLES) * (SAMPLES / len(samples))
