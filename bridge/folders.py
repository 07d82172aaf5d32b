"""A Hugging Face folder, config.json beside *.safetensors: its settings, its tensors one by one.

Other formats of weights are not read, because loading them can run code. Needs
`pip install safetensors`. Names and formats are known from transformers' configurations; the code
is our own.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from data import DataError


def read_config(folder: Path) -> dict:
    file = folder / "config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{file}: no such file; a Hugging Face folder holds config.json and *.safetensors"
        ) from None
    except ValueError as error:
        raise DataError(f"{file}: not readable as JSON ({error})") from None


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
    except (ValueError, KeyError, AttributeError, TypeError) as error:
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
