"""Prompts in batches that fit the memory, what a question of one's own is about, and what is said
of pictures that cannot be read."""

import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from data import WORLDS, DataError, Row, audio, encode, row_or_empty_prompt

# Of a batch's KV cache and mask. At the paper's size a token takes 0.75 MiB of cache in float32: 10
# rows of 500 tokens. Half as much again is taken while rows that have finished are dropped.
CACHE_BYTES = 2**32
MASK_BYTES = 4  # for each pair of tokens, while the mask is put together; measured


def encode_prompts(prompts: list[tuple], tokenizer, config, progress: bool) -> Iterator[Row]:
    """The row of each prompt (example, turn); its `unread` is set if a picture cannot be read."""
    for example, turn in tqdm(prompts, desc="answering", disable=not progress):
        row = encode(example, tokenizer, config.n_image_tokens, upto=turn)
        yield row_or_empty_prompt(row, tokenizer, config.image_size)


def row_batches(
    rows: Iterable[Row], new_tokens: int, most: int, bytes_a_token: int
) -> Iterator[list[Row]]:
    """The rows, in their order, in batches of at most `most`, with no more than CACHE_BYTES for
    keys, values and mask of each batch, but of one row at least. new_tokens: room for the answer;
    bytes_a_token: of the cache, for one row."""
    batch, longest = [], 0
    for row in rows:
        longest = max(longest, len(row.ids))
        a_row = (longest + new_tokens) * bytes_a_token + longest**2 * MASK_BYTES
        needed = (len(batch) + 1) * a_row
        if batch and (len(batch) == most or needed > CACHE_BYTES):
            yield batch
            batch, longest = [], len(row.ids)
        batch.append(row)
    if batch:
        yield batch


def say_unread(results: list[dict], say, strict: bool = False) -> None:
    """Say how many of eval.answer_all's results have no answer, because a picture cannot be read.
    strict: raise DataError instead."""
    unread = [r for r in results if r["unread"]]
    if not unread:
        return
    if strict:
        raise DataError(f"{unread[0]['id']}: {unread[0]['unread']}".removeprefix(": "))
    say(
        f"{len(unread):,} of {len(results):,} questions are not answered, and count as wrong: a "
        f"picture of theirs cannot be read, such as {unread[0]['unread']}"
    )


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
    sound, done = audio.read(file)
    if done:
        print(done, file=sys.stderr)
    return audio.picture_of(sound[None])[0]
