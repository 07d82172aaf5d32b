"""Prompts in batches that fit the memory, what a question of one's own is about, and what is said
of pictures that cannot be read."""

import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from data import HEARD, DataError, Row, audio, encode, readable

# Of a batch's KV cache. At the paper's size a token takes 0.75 MiB in float32: 10 rows of 500
# tokens. Half as much again is taken while rows that have finished are dropped.
CACHE_BYTES = 2**32


def encode_prompts(prompts: list[tuple], tokenizer, config, progress: bool) -> Iterator[Row]:
    """The row of each prompt (example, turn); its `unread` is set if a picture cannot be read."""
    for example, turn in tqdm(prompts, desc="answering", disable=not progress):
        row = encode(example, tokenizer, config.n_image_tokens, upto=turn)
        yield readable(row, tokenizer, config.image_size)


def row_batches(
    rows: Iterable[Row], new_tokens: int, most: int, bytes_a_token: int
) -> Iterator[list[Row]]:
    """The rows, in their order, in batches of at most `most`, with no more than CACHE_BYTES for
    keys and values of each batch, but of one row at least. new_tokens: room for the answer;
    bytes_a_token: of the cache, for one row."""
    batch, longest = [], 0
    for row in rows:
        longest = max(longest, len(row.ids))
        needed = (len(batch) + 1) * (longest + new_tokens) * bytes_a_token
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
    """DataError unless eval.py's --question and the file that it is about are given together."""
    if args.image is not None and args.audio is not None:
        raise DataError("--image and --audio: a question is about one of them")
    option = "--image" if args.audio is None else "--audio"
    if (args.image is None and args.audio is None) != (args.question is None):
        raise DataError(f"{option} and --question belong together")


def asked_picture(args, trained: dict, run: Path) -> Path | Tensor:
    """The picture that eval.py's --question is about: --image's file, or the spectrogram of
    --audio's. trained: the arguments of the run. DataError, if the run knows the other one only."""
    heard = trained["data"] in HEARD
    if heard != (args.audio is not None):
        knows, option = ("sounds", "--audio FILE.wav") if heard else ("pictures", "--image FILE")
        raise DataError(f"{run} was trained on {knows}: ask it with {option}")
    return args.image or picture_of(args.audio)


@cache  # what is done to a file is said once, however many runs are asked
def picture_of(file: Path) -> Tensor:
    sound, done = audio.read(file)
    if done:
        print(done, file=sys.stderr)
    return audio.picture_of(sound[None])[0]
