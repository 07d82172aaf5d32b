"""What lab/ and bridge/ add: methods by name, and the pictures of a run.

The four files and the engine import neither. A command that is asked for a method, or that draws,
has `module` import it, if it is there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module

import data


@dataclass(frozen=True)
class Variant:
    """What a method changes. model_class: of the model (default: MLLM); tokenizer_class: of the
    prompt's order; wrap_source(source, args): the data; settings: values of engine.options'
    DEFAULTS."""

    about: str
    model_class: type | None = None
    tokenizer_class: type[data.Tokenizer] = data.Tokenizer
    wrap_source: Callable = lambda source, args: source
    settings: dict = field(default_factory=dict)


PLAIN = Variant("the mask alone")
VARIANTS: dict[str, Variant] = {}  # --variant NAME; lab/variants.py adds to them


def module(name: str):
    """A module of lab/ or bridge/, or None where that is not there."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in (name, name.partition(".")[0]):
            raise  # the module is there; something that it needs is not


def watch():
    """What draws curves.png and sheet.png of a run, or None."""
    return module("lab.watch")


def find(name: str | None) -> Variant:
    """The variant of that name. DataError if nobody has registered it."""
    if name is None:
        return PLAIN
    module("lab.variants")
    if name not in VARIANTS:
        raise data.DataError(f"no variant {name!r}; there are {', '.join(VARIANTS)}")
    return VARIANTS[name]


def get(args) -> Variant:
    """The variant that train.py's args name; its settings are put into args, where the user has
    not said otherwise."""
    variant = find(args.variant)
    for name, value in variant.settings.items():
        if args.origin.get(name) != "you":
            setattr(args, name, value)
            args.origin[name] = "variant"
    return variant


def variant_of(trained: dict) -> Variant:
    """The variant of a finished run, by its arguments (run.json)."""
    if "model" in trained:
        again = f"python -m bridge.hf_finetune {trained['out']} --steps 0 --data {trained['data']}"
        raise data.DataError(f"{trained['out']}: a Hugging Face model; {again} ... scores it")
    if trained.get("template"):
        if not (runs := module("bridge.runs")):
            raise data.DataError("a run from pretrained weights needs bridge/, which is not there")
        return runs.PRETRAINED[bool(trained.get("vision"))]
    return find(trained.get("variant"))
