"""From pictures and dialogues to batches. One file for each step:

    errors.py       what is wrong with the user's data
    pixels.py       what a picture may be beside a file: a part of one, a tensor
    pictures.py     the files of pictures
    audio.py        sound, WAV files -> spectrograms, which are pictures
    prompt.py       the prompt format: tokenizer, rows of tokens with roles, batches
    text.py         what is written in several ways, read as one
    packing.py      rows of different lengths, packed
    draws.py        random numbers by a key: what a step draws
    folder.py       a finite data set: splits, what cannot be used
    files.py        entries of the user's JSON files; which pictures' files are copies

and one file or folder for each data set, imported when it is asked for:

    llava.py        your own pictures and dialogues
    easy_vqa.py     easy-VQA's files
    nlvr/           NLVR's files, and a world in NLVR's manner
    shapes/         the built-in world; two pictures of it a row; its scenes in words alone
    sounds/         a built-in world of sound
    families.py     what the built-in worlds share: questions in families, how much they tell

A data set is an object with texts(), draw(stage, step, pictures, per_picture, seed),
heldout(split, limit), split_names(), answers and final_split: see `folder.Folder`. It is known by
name once it stands in WORLDS. `python -m data NAME` shows a built-in world.
"""

import pkgutil
from dataclasses import dataclass

from data.draws import Wrapped, seed_of
from data.errors import DataError, reason
from data.packing import pack
from data.pixels import Crop
from data.prompt import (
    ANSWER_TOKEN,
    IMAGE_TOKEN,
    Example,
    Row,
    Tokenizer,
    about_picture,
    collate,
    encode,
    pixels_of,
    row_or_empty_prompt,
    unusable,
)
from data.text import normalise

__all__ = [
    "ANSWER_TOKEN", "AUDIO_WORLDS", "IMAGE_TOKEN", "NAMES", "TEXT_WORLDS", "WORLDS", "Crop",
    "DataError", "DataSet", "Example", "Row", "Tokenizer", "Wrapped", "about_picture", "collate",
    "encode", "load", "normalise", "options_of", "pack", "pixels_of", "reason",
    "row_or_empty_prompt", "seed_of", "unusable",
]  # fmt: skip


@dataclass(frozen=True)
class DataSet:
    """A data set that is known by name. made_by: MODULE:NAME of what makes it, called with those
    options of `load` that it takes. shows: "pictures", "sounds" (spectrograms of them) or ""."""

    made_by: str
    takes: tuple[str, ...] = ()
    shows: str = "pictures"


WORLDS = {
    "shapes": DataSet("data.shapes:Shapes", ("scenes",)),
    "shapes-pairs": DataSet("data.shapes.pairs:Pairs"),
    "shapes-text": DataSet("data.shapes.text:ShapesText", shows=""),
    "sounds": DataSet("data.sounds:Sounds", shows="sounds"),
    "easy_vqa": DataSet("data.easy_vqa:load", ("source",)),
    "llava": DataSet("data.llava:load", ("source", "images", "strict", "pt_source", "pt_images")),
    "nlvr": DataSet("data.nlvr:NLVR", ("source",)),
    "nlvr+world": DataSet("data.nlvr:with_world", ("source",)),
}
NAMES = tuple(WORLDS)
AUDIO_WORLDS = tuple(name for name, world in WORLDS.items() if world.shows == "sounds")
TEXT_WORLDS = tuple(name for name, world in WORLDS.items() if not world.shows)
OPTIONS = ("source", "images", "strict", "pt_source", "pt_images", "scenes")


def options_of(args) -> dict:
    """The options of `load` in a command line."""
    return {name: getattr(args, name) for name in OPTIONS}


def load(name: str, source=None, **options):
    """The data set `name`. source, images: where its files lie. strict: damaged entries of a LLaVA
    file are an error; else they are left out, counted and reported. pt_source, pt_images: captions
    for stage 1. scenes: of the built-in world, how many training has (default: ever new ones).
    None and False are as if not given. Raises DataError for an option that the data set does not
    take, and if the files are not what they should be."""
    world, options = WORLDS[name], {"source": source, **options}
    given = {option: value for option, value in options.items() if value not in (None, False)}
    if "source" in world.takes and source is None:
        needed = "JSON file" if name == "llava" else "folder"
        raise DataError(f"--data {name} needs --source: the path of its {needed}")
    for option in given:
        if option not in world.takes:
            takers = " or ".join(other for other in WORLDS if option in WORLDS[other].takes)
            flag = option.replace("_", "-")
            raise DataError(f"--{flag} belongs to --data {takers}, not to {name}")
    return pkgutil.resolve_name(world.made_by)(**given)
