"""From pictures and dialogues to batches. One file for each step, and for each world or format:

    errors.py       what is wrong with the user's data
    pictures.py     files and parts of files -> pixels
    prompt.py       the prompt format: tokenizer, rows of tokens with roles, batches
    text.py         what is written in several ways, read as one
    packing.py      rows of different lengths, packed
    folder.py       a finite data set: splits, what cannot be used, what a step draws
    families.py     what the built-in worlds share: questions in families, how much they tell
    shapes.py       the built-in world; shapes_scenes.py, shapes_questions.py
    shapes_pairs.py two pictures of it a row; shapes_text.py: its scenes in words alone
    sounds.py       a built-in world of sound; sounds_notes.py
    audio.py        sound -> spectrograms, which are pictures; WAV files
    nlvr_world.py   a world in NLVR's manner; nlvr_scenes.py, nlvr_phrases.py, nlvr_sentences.py
    nlvr.py         NLVR's files
    easy_vqa.py     easy-VQA's files
    llava.py        your own pictures and dialogues

A data set is an object with texts(), draw(stage, step, pictures, per_picture, seed),
heldout(split, limit), split_names(), answers and final_split: see `folder.Folder`.
"""

from data.errors import DataError, SkippedEntries, reason
from data.folder import Folder, Wrapped, read_json, seed_of, unusable
from data.packing import pack
from data.pictures import Crop, can_open, picture_key, pixels_of
from data.prompt import (
    ANSWER_TOKEN,
    IMAGE_TOKEN,
    Example,
    Row,
    Tokenizer,
    about_picture,
    collate,
    encode,
    row_or_empty_prompt,
)
from data.text import fold

__all__ = [
    "ANSWER_TOKEN", "AUDIO_WORLDS", "IMAGE_TOKEN", "NAMES", "TEXT_WORLDS", "Crop", "DataError",
    "Example", "Folder", "Row", "SkippedEntries", "Tokenizer", "Wrapped", "about_picture",
    "can_open", "collate", "encode", "fold", "load", "pack", "picture_key", "pixels_of",
    "read_json", "reason", "row_or_empty_prompt", "seed_of", "unusable",
]  # fmt: skip

BUILT_IN = ("shapes", "shapes-pairs", "shapes-text", "sounds")
NAMES = (*BUILT_IN, "easy_vqa", "llava", "nlvr", "nlvr+world")
AUDIO_WORLDS = ("sounds",)  # their pictures are spectrograms
TEXT_WORLDS = ("shapes-text",)  # they show no picture
# Which data sets take an option of `load`; one that is not listed here belongs to --data llava
BELONGS = {"--source": NAMES[len(BUILT_IN) :], "--scenes": ("shapes",)}


def load(
    name: str, source=None, images=None, strict: bool = False, pt_source=None, pt_images=None,
    scenes: int | None = None,
):  # fmt: skip
    """The data set `name`. source, images: where its files lie. strict: damaged entries of a LLaVA
    file are an error; else they are left out, counted and reported. pt_source, pt_images: captions
    for stage 1. scenes: of the built-in world, how many training has (default: ever new ones).
    Raises DataError if the files are not what they should be."""
    # Here, so that `python -m data.shapes` does not import what it is about to run
    from data import easy_vqa, llava, nlvr, nlvr_world, shapes, shapes_pairs, shapes_text, sounds

    if name not in BUILT_IN and source is None:
        needed = "JSON file" if name == "llava" else "folder"
        raise DataError(f"--data {name} needs --source: the path of its {needed}")
    given = {"--source": source, "--images": images, "--strict": strict or None}
    given |= {"--pt-source": pt_source, "--pt-images": pt_images, "--scenes": scenes}
    for option, value in given.items():
        belongs = BELONGS.get(option, ("llava",))
        if value is not None and name not in belongs:
            raise DataError(f"{option} belongs to --data {' or '.join(belongs)}, not to {name}")
    if pt_images is not None and pt_source is None:
        raise DataError("--pt-images belongs to --pt-source FILE, which is not given")
    if name == "shapes":
        return shapes.Shapes(scenes)
    worlds = {"sounds": sounds.Sounds, "shapes-pairs": shapes_pairs.Pairs}
    worlds |= {"shapes-text": shapes_text.ShapesText}
    if name in worlds:
        return worlds[name]()
    if name.startswith("nlvr"):
        return nlvr.NLVR(source, nlvr_world.World() if name == "nlvr+world" else None)
    if name == "easy_vqa":
        return easy_vqa.load(source)
    return llava.load(source, images, strict, pt_source, pt_images)
