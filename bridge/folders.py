"""A Hugging Face folder: its settings, read by transformers' AutoConfig, and its tensors, under the
names that model.py has for them. Weights are read from *.safetensors alone: other formats can run
code."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from re import fullmatch
from shlex import quote

import torch
from torch import Tensor

from data import DataError

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def needed(module: str, package: str):
    """A module of a package that only pretrained weights and benchmark files need."""
    try:
        return import_module(module)
    except ImportError as error:
        advice = f"need the package {package}: pip install {quote(package)} ({error})"
        raise DataError(f"pretrained weights and benchmarks {advice}") from None


@contextmanager
def one_line(what, kinds=(OSError, ValueError, KeyError, TypeError)):
    """Errors of other packages about the user's files are a DataError of one line: what, and why.
    kinds: Exception, where a package raises nothing more special."""
    try:
        yield
    except kinds as error:
        raise DataError(f"{what}: {' '.join(str(error).split())[:300]}") from None


def read_config(folder: Path):
    """transformers' configuration of a folder, whose types it has checked."""
    file = folder / "config.json"
    if not file.is_file():
        raise DataError(
            f"{file}: no such file; a Hugging Face folder holds config.json and *.safetensors"
        )
    auto = needed("transformers", "transformers>=5.6").AutoConfig
    with one_line(file, Exception):
        return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def demand(folder: Path, config, **allowed: list) -> None:
    """DataError for a setting that would load and compute something else. allowed: name -> the
    values that can be loaded, the first of which holds where a configuration does not know it."""
    for name, values in allowed.items():
        value = getattr(config, name, values[0])
        if value not in values:
            raise DataError(
                f"{folder / 'config.json'}: {name} is {value!r}; "
                f"only {', '.join(map(repr, values))} can be loaded"
            )


# --- Tensors


def files_of(folder: Path) -> list[Path]:
    """The files of the weights, as transformers chooses them: model.safetensors, or those that an
    index names."""
    if (file := folder / "model.safetensors").exists():
        return [file]
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        raise DataError(
            f"{folder}: no model.safetensors, and no index of several; other formats are not read, "
            "because loading them can run code"
        )
    with one_line(f"{index}: not readable as an index of files", Exception):
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({folder / name for name in named})


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder, read one after the other, so that memory holds a model once."""
    safe_open = needed("safetensors", "safetensors").safe_open
    for file in files_of(folder):
        unreadable = one_line(f"{file}: not readable as safetensors", Exception)
        with unreadable, safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                yield name, opened.get_tensor(name)


def values_of(folder: Path, table: dict[str, str], shapes: dict, dtype: torch.dtype) -> dict:
    """parameter -> its value, of the folder's tensors. table: a pattern of a tensor's name -> the
    parameters that it fills; several ("a b c") share its rows in this order; "" = known and not
    needed. A tensor that is not known keeps its name, so that load_state_dict refuses it.
    shapes: of the parameters. DataError for what is quantised, or there twice."""
    values = {}
    for name, tensor in tensors(folder):
        where, targets = f"{folder}: {name} {list(tensor.shape)}", targets_of(name, table)
        if targets and tensor.dtype not in FLOATS:
            raise DataError(f"{where} is quantised ({tensor.dtype}), which is not read")
        if values.keys() & targets:
            raise DataError(f"{where} is there twice, under two names")
        if tensor.dim() == 4:  # a convolution over whole patches
            tensor = tensor.flatten(1)
        parts = [tensor]
        if len(targets) > 1:
            with one_line(f"{where} does not fit", (KeyError, RuntimeError, IndexError)):
                parts = tensor.split([shapes[target][0] for target in targets])
        values |= {to: part.to(dtype, copy=True) for to, part in zip(targets, parts)}
    return values


def targets_of(name: str, table: dict[str, str]) -> list[str]:
    matches = ((fullmatch(pattern, name), to) for pattern, to in table.items())
    return next((match.expand(to).split() for match, to in matches if match), [name])
