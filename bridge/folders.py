"""A Hugging Face folder: its settings, read by transformers' AutoConfig, and its tensors, each of
which is accounted for. Weights are read from *.safetensors alone: other formats can run code."""

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from re import fullmatch
from shlex import quote

import torch
from torch import Tensor, nn

from data import DataError

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
ROOM_FOR_NEW = ("embed.weight", "unembed.weight")  # may have one token more than the files


def needed(module: str, package: str):
    """A module of a package that only pretrained weights need."""
    try:
        return import_module(module)
    except ImportError as error:
        advice = f"pretrained weights need the package {package}: pip install {quote(package)}"
        raise DataError(f"{advice} ({error})") from None


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
    index names; or else all there are."""
    if (file := folder / "model.safetensors").exists():
        return [file]
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        if files := sorted(folder.glob("*.safetensors")):
            return files
        raise DataError(
            f"{folder}: no *.safetensors; other formats are not read, because loading them can run "
            "code"
        )
    with one_line(f"{index}: not readable as an index of files", Exception):
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted({folder / name for name in named})
    for file in files:
        if not file.exists():
            raise DataError(f"{file}: no such file, but {index.name} names it")
    return files


def tensors(folder: Path, only: tuple[str, ...] = ()) -> Iterator[tuple[Path, str, Tensor]]:
    """(file, name, tensor) of every tensor of a folder, or of those named, read one after the
    other, so that memory holds a model once."""
    safe_open = needed("safetensors", "safetensors").safe_open

    def of(file: Path):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                if not only or name in only:
                    yield file, name, opened.get_tensor(name)

    for file in files_of(folder):
        with one_line(f"{file}: not readable as safetensors", Exception):
            yield from of(file)


def fill(model: nn.Module, folder: Path, table: dict, wanted: set[str], dtype: torch.dtype) -> None:
    """Give the parameters `wanted` of a model on the meta device their values from a folder.
    DataError for a tensor that is missing, unexpected, misshapen, quantised, or there twice.

    table: a pattern of a tensor's name -> the parameters that it fills. Several ("a b c") share its
    rows in this order; of one that several tensors fill, "name#1" is the second part of its rows;
    "" = known and not needed."""
    wanted, wrong, values = set(wanted), [], {}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    parts, came_from = collect(folder, table, wanted, shapes, dtype, wrong)
    for name in sorted(wanted):
        expected = list(shapes[name])
        if name not in parts:
            wrong.append(f"{name} {expected} is missing")
            continue
        values[name] = whole(name, parts.pop(name), shapes[name])
        if (got := list(values[name].shape)) != expected:
            tensor = " and ".join(came_from[name])
            wrong.append(f"{tensor}: {name} would be {got}, not {expected}")
    if wrong:
        shown = "; ".join(wrong[:8]) + ("; ..." if len(wrong) > 8 else "")
        raise DataError(f"{folder}: {len(wrong)} tensors do not fit: {shown}")
    model.load_state_dict(values, strict=False, assign=True)


def collect(folder: Path, table: dict, wanted: set[str], shapes: dict, dtype, wrong: list) -> tuple:
    """parts, parameter -> {which part: its rows}, and the names of the tensors that they came from.
    What does not fit goes to `wrong`; what is quantised leaves `wanted`."""
    parts, came_from, seen, filled = defaultdict(dict), defaultdict(list), {}, set()
    for file, name, tensor in tensors(folder):
        if name in seen:
            raise DataError(
                f"{folder}: {name} stands in {seen[name].name} and in {file.name}: two copies of "
                "the weights, of which one has to go"
            )
        seen[name], targets = file, targets_of(name, table)
        to = [target.partition("#")[0] for target in targets or ()]
        if targets is None or not wanted.issuperset(to) or filled.intersection(targets):
            wrong.append(f"{name} {list(tensor.shape)} in {file.name} is not expected")
        elif to and tensor.dtype not in FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            wrong.append(f"{name} in {file.name} is quantised ({kind}), which is not read")
            wanted.difference_update(to)
        else:
            for target, rows in zip(targets, shared(tensor, [shapes[name] for name in to])):
                parameter, _, which = target.partition("#")
                parts[parameter][which] = rows.to(dtype, copy=True)
                came_from[parameter].append(name)
            filled.update(targets)
    return parts, came_from


def targets_of(name: str, table: dict[str, str]) -> list[str] | None:
    """What a tensor fills, by a table as fill's; None: it is not known."""
    matches = ((fullmatch(pattern, name), to) for pattern, to in table.items())
    return next((match.expand(to).split() for match, to in matches if match), None)


def shared(tensor: Tensor, shapes: list) -> list[Tensor]:
    """A tensor's rows, for parameters of these shapes; what is left over or lacking is the last
    one's, where it is found."""
    if len(shapes) < 2 or not tensor.dim():
        return [tensor] * len(shapes)
    ends = torch.tensor([shape[0] for shape in shapes[:-1]]).cumsum(0)
    return list(tensor.tensor_split(ends))


def whole(name: str, parts: dict[str, Tensor], shape: torch.Size) -> Tensor:
    """A parameter of a shape from its parts; one that no concatenation gives stays a part."""
    values = [parts[which] for which in sorted(parts)]
    fits = all(part.shape[1:] == shape[1:] for part in values)
    value = torch.cat(values) if len(values) > 1 and fits else values[0]
    if value.numel() == shape.numel() and value.dim() == 4:  # a convolution over whole patches
        return value.flatten(1)
    if name in ROOM_FOR_NEW and value.dim() == 2 and len(value) + 1 == shape[0]:
        return torch.cat([value, value.mean(0, keepdim=True)])  # the mean of the others
    return value
