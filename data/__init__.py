"""From pictures and dialogues to batches. One file for each step and one for each world or format:

    prompt.py     the prompt format: tokenizer, rows with roles, batches      pictures.py   files
    folder.py     a finite data set: splits, what cannot be used, what a step draws
    packing.py    rows of different lengths, packed                           errors.py
    shapes.py     the built-in world      easy_vqa.py, nlvr.py, nlvr_world.py, llava.py: your own

A data set is an object with texts(), draw(stage, step, pictures, per_picture, seed),
heldout(split, limit), split_names(), answers and final_split: see `folder.Folder`.
"""

from data.errors import DataError, SkippedEntries
from data.folder import Folder, read_json, seed_of, unusable
from data.packing import pack
from data.pictures import Crop, pixels_of
from data.prompt import ANSWER, IMAGE, Example, Row, Tokenizer, collate, encode

__all__ = [
    "ANSWER", "IMAGE", "NAMES", "Crop", "DataError", "Example", "Folder", "Row", "SkippedEntries",
    "Tokenizer", "collate", "encode", "load", "pack", "pixels_of", "read_json", "seed_of",
    "unusable",
]  # fmt: skip

NAMES = ("shapes", "easy_vqa", "llava", "nlvr", "nlvr+world")


def load(name: str, source=None, images=None, strict: bool = False, pt_source=None, pt_images=None):
    """The data set `name`. source, images: where its files lie. strict: damaged entries of a LLaVA
    file are an error; else they are left out, counted and reported. pt_source, pt_images: captions
    for stage 1. Raises DataError if the files are not what they should be."""
    from data import easy_vqa, llava, nlvr, nlvr_world, shapes  # each builds on the names above

    if name != "shapes" and source is None:
        raise DataError(
            f"--data {name} needs --source: the path of its "
            + ("JSON file" if name == "llava" else "folder")
        )
    if pt_source is not None and name != "llava":
        raise DataError(f"--pt-source belongs to --data llava, not to {name}")
    if name == "shapes":
        return shapes.Shapes()
    if name.startswith("nlvr"):
        return nlvr.NLVR(source, nlvr_world.World() if name == "nlvr+world" else None)
    return (
        easy_vqa.load(source)
        if name == "easy_vqa"
        else llava.load(source, images, strict, pt_source, pt_images)
    )
