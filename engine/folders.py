"""What is checked and said, before training, of a data set that lies in files: train.py loads this
where there is one."""

import torch

from data import DataError
from data.pictures import open_picture
from engine.batches import StepBatches


def check_folder(source, tokenizer, config, args, say) -> None:
    """Read every picture once, leave out what cannot be used, and say so. DataError where too few
    are left."""
    if skipped := source.read_pictures(config.image_size):
        say(skipped)
    if empty := [split for split, groups in source.splits.items() if not groups]:
        raise DataError(
            f"{args.pt_source if empty == ['pt'] else args.source}: too few pictures; training, "
            "validation and test (and pt, the captions of --pt-source) need one each; none is left "
            f"for {', '.join(empty)}"
        )
    cut, dropped = source.drop_unusable(tokenizer, config.n_image_tokens, args.max_tokens)
    say(f"{cut} training rows are longer than {args.max_tokens} tokens and are cut; {dropped} of "
        "them keep no answer and are left out")  # fmt: skip
    say(describe_splits(source))


def describe_splits(source) -> str:
    """One line: how a folder's data were split, and whether what is held out shows a picture."""
    counts, without = [], []
    for split, groups in source.splits.items():
        examples = [example for group in groups for example in group]
        n = sum(len(example.turns) for example in examples)
        # Crops of one file, such as NLVR's boxes, are one picture
        shown = {getattr(image, "path", image) for e in examples for image in e.images}
        what = "captions of" if split == "pt" else "about" if counts else "questions about"
        counts.append(f"{split}: {n:,} {what} {len(shown):,}{'' if counts else ' pictures'}")
        without += [split] if split in ("val", "test") and not shown else []
    line = "; ".join(counts)
    if without:
        line += f". No picture is left for {' and '.join(without)}"
    if source.final_split in without:
        line += ": example.png, a picture to ask about, is not written"
    return line


def warn_of_photographs(batches: StepBatches, n_looked_at: int = 8) -> list[str]:
    """A line for who trains an encoder from nothing on photographs, if most of the first pictures
    are such: files of many colours, far larger than the model's pictures."""
    images = [image for example in batches.examples(0) for image in example.images]
    files = {getattr(image, "path", image): None for image in images if not torch.is_tensor(image)}
    found, looked_at = [], list(files)[:n_looked_at]
    for file in looked_at:
        try:
            picture = open_picture(file)
        except DataError:  # said where it is left out
            continue
        few_pixels = picture.resize((128, 128), 0)  # the nearest pixel, so that no colour is new
        if max(picture.size) >= 3 * batches.config.image_size and not few_pixels.getcolors(2048):
            found.append(f"{picture.width} x {picture.height}")
    if 2 * len(found) <= len(looked_at):
        return []
    return [
        f"These are photographs, such as one of {found[0]} pixels. An encoder that starts from "
        "nothing learns little from a few thousand of them: expect answers that are hardly better "
        "than guesses. python -m bridge.finetune --llm DIR --vision DIR begins with pretrained "
        "weights (docs/weights.md)"
    ]
