"""A Hugging Face folder, config.json beside *.safetensors: its settings, its tensors one by one.

Other formats of weights are not read, because loading them can run code. Needs
`pip install safetensors`. Names and formats are known from transformers' configurations; the code
is our own.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from data import DataError


def read_config(folder: Path) -> dict:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{file}: no such file; a Hugging Face folder holds config.json and *.safetensors"
        ) from None
    except OSError as error:
        raise DataError(f"{file}: not readable ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{file}: not readable as JSON ({error})") from None
    if not isinstance(config, dict):
        raise DataError(f"{file}: holds no settings; an object of JSON was expected")
    return config


def section(folder: Path, config: dict, name: str) -> dict:
    """The settings that a setting holds; none where config.json says nothing or null."""
    value = config.get(name)
    if value is not None and not isinstance(value, dict):
        said = f"{name} is {json.dumps(value)[:60]}, and an object was expected"
        raise DataError(f"{folder / 'config.json'}: {said}")
    return value or {}


def is_number(value, whole: bool = False) -> bool:
    """Whether it can be a size, or with whole a number of things: true and "32" are neither."""
    right = type(value) is int or (type(value) is float and not whole)
    return right and 0 < value < math.inf


def number(folder: Path, config: dict, name: str, default=None, whole: bool = True):
    """A setting that is a number above 0. default: what holds where config.json says nothing or
    null; without one that is an error."""
    value = config.get(name)
    if value is None and default is not None:
        return default
    if is_number(value, whole):
        return value
    said = f"is {json.dumps(value)[:60]}" if name in config else "is missing"
    wanted = "a whole number" if whole else "a number"
    raise DataError(f"{folder / 'config.json'}: {name!r} {said}; {wanted} above 0 was expected")


def demand(folder: Path, config: dict, **allowed: list) -> None:
    """DataError for a setting that would load and compute something else. allowed: name -> the
    values that can be loaded, the first of which holds where config.json says nothing."""
    for name, values in allowed.items():
        value = config.get(name, values[0])
        if value not in values:
            raise DataError(
                f"{folder / 'config.json'}: {name} is {value!r}; "
                f"only {', '.join(map(repr, values))} can be loaded"
            )


def files_of(folder: Path) -> list[Path]:
    """The files of the weights: those that an index names, else all."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise DataError(
                f"{folder}: no *.safetensors; other formats are not read, because loading them "
                "can run code"
            )
        return files
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted({folder / name for name in named})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{index}: not readable as an index of files ({error})") from None
    for file in files:
        if not file.exists():
            raise DataError(f"{file}: no such file, but {index.name} names it")
    return files


def tensors(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """(file, name, tensor) of every tensor of a folder, read one after the other, so that memory
    holds a model once."""
    try:
        from safetensors import safe_open
    except ImportError:
        raise DataError(
            "pretrained weights need the package safetensors: pip install safetensors"
        ) from None

    def of(file: Path):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                yield file, name, opened.get_tensor(name)

    for file in files_of(folder):
        try:
            yield from of(file)
        except Exception as error:  # of a class that safetensors does not export everywhere
            raise DataError(f"{file}: not readable as safetensors ({error})") from None
