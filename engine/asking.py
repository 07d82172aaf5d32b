"""What a finished run is asked: a question about a file of one's own, or the examples of a data
set; for eval.py and the commands that take its options."""

import sys
from functools import cache
from pathlib import Path

from torch import Tensor

from data import WORLDS, DataError, load


def check_asked(args) -> None:
    """DataError unless --question and the file that it is about are given together, and nothing
    that names a data set or what becomes of its answers."""
    audio = getattr(args, "audio", None)
    if args.image is not None and audio is not None:
        raise DataError("--image and --audio: a question is about one of them")
    option = "--image" if audio is None else "--audio"
    if (args.image is None and audio is None) != (args.question is None):
        raise DataError(f"{option} and --question belong together")
    for name in ("data", "source", "images", "split", "json", "md"):
        if args.question is not None and getattr(args, name, None) is not None:
            raise DataError(f"--{name} belongs to a data set; --question is about one file")


def check_sees(trained: dict, run: Path | str, shown: str = "pictures", advice: str = "") -> None:
    """DataError unless a run was trained on what it is shown: "pictures" or "sounds". trained: its
    arguments."""
    knows = WORLDS[trained["data"]].shows or "text alone"
    if knows != shown:
        why = " and never saw a picture" if knows == "text alone" else ""
        raise DataError(f"{run} was trained on {knows}{why}: {advice or f'it knows no {shown}'}")


def asked_picture(args, trained: dict, run: Path) -> Path | Tensor:
    """The picture that eval.py's --question is about: --image's file, or the spectrogram of
    --audio's. trained: the arguments of the run. DataError, if the run knows the other one only, or
    text alone."""
    ask = {"pictures": "it with --image FILE", "sounds": "it with --audio FILE.wav"}
    advice = ask.get(WORLDS[trained["data"]].shows, f"it in words, python -m lab.talk {run}")
    shown = "pictures" if getattr(args, "audio", None) is None else "sounds"
    check_sees(trained, run, shown, f"ask {advice}")
    return args.image or picture_of(args.audio)


@cache  # what is done to a file is said once, however many runs are asked
def picture_of(file: Path) -> Tensor:
    from data import audio  # a run of pictures needs nothing of it

    sound, done = audio.read(file)
    if done:
        print(done, file=sys.stderr)
    return audio.picture_of(sound[None])[0]


def examples_of(trained: dict, args, image_size: int) -> tuple:
    """The data set, its examples that the options name, and what these are, for a record; by
    default those that the run with the arguments `trained` was tested on."""
    name = args.data or trained["data"]
    if shown := WORLDS[name].shows:
        check_sees(trained, trained.get("out", "the run"), shown)
    source, images = args.source, args.images
    known = name == trained["data"] and source is None  # training has said what is damaged
    if known:
        source, images = trained["source"], images or trained["images"]
    what = {"data": name, "source": source and str(source)}
    scenes = trained.get("scenes") if known else None
    options = {"images": images and Path(images), "scenes": scenes}
    source = load(name, source and Path(source), **options)
    if scenes:
        source.seed = trained["seed"]  # with another one training had other scenes
    names, split = source.split_names(), args.split or source.final_split
    if split not in (*names, "all"):
        raise DataError(f"{name} has no split {split!r}; there are {', '.join(names)}, all")
    splits = names if split == "all" else [split]
    if hasattr(source, "read_pictures") and not source.skipped.strict:
        if skipped := source.read_pictures(image_size, brief=known):
            print(skipped)
    examples = [e for split in splits for e in source.heldout(split, args.limit)]
    if not examples:
        raise DataError(f"the split {split!r} of {name} is empty; try --split all")
    return source, examples, {**what, "split": split, "limit": args.limit}
