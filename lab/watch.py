"""What train.py draws while it trains: curves.png at every look at validation, and at the end
sheet.png (patches with a frame: where the row that gives the answer looks) and example.png; of a
world of sound also example.wav.

Without matplotlib there are no curves; metrics.jsonl has their numbers.
"""

import sys
from pathlib import Path

import data
from engine.checkpoint import write_file
from engine.wings import WATCHES

SHOWN = 24  # answers of the sheet
told = False  # that matplotlib is missing


def write_curves(path: Path, records: list[dict]) -> None:
    """The curves of a training, from the lines of metrics.jsonl so far."""
    global told
    from lab.curves import write_training

    try:
        write_training(path, records)
    except data.DataError as error:
        if not told:
            print(f"no {path.name}: {error}; metrics.jsonl has the numbers", file=sys.stderr)
        told = True


def write_sheet(
    out: Path, model, tokenizer, results: list[dict], write: bool = True, source=None
) -> None:
    """sheet.png and example.png in the folder `out`, and example.wav, if the data set, source, can
    write one; results: as eval.answer_all gives them. All processes of a sharded model call it, one
    with write."""
    from lab.figures import write_sheet as write_png
    from lab.recording import attended

    some = results = [r for r in results if not r.get("unread")]
    if len(results) > SHOWN:
        some = [results[k * len(results) // SHOWN] for k in range(SHOWN)]
    framed = [attended(model, tokenizer, *r["prompt"]) for r in some]
    if not write or not results:
        return
    write_png(out / "sheet.png", some, model.config.image_size, framed)
    pictures = [image for r in some for image in r["prompt"][0].images]
    if pictures:
        write_example(out / "example.png", pictures[0], model.config.image_size)
    if hasattr(source, "write_example"):
        write_file(out / "example.wav", source.write_example)


def write_example(path: Path, image, size: int) -> None:
    """A picture to ask about, as the model takes it."""
    from PIL import Image

    pixels = data.pixels_of(image, size, "")
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    write_file(path, lambda file: picture.save(file, "PNG"))


WATCHES.append(sys.modules[__name__])
