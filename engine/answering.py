"""Prompts in batches that fit the memory, the loss of held-out answers, and what is said of
pictures that cannot be read."""

from collections.abc import Iterable, Iterator

import torch
from tqdm import tqdm

from data import DataError, Row, collate, encode, row_or_empty_prompt
from engine.precision import in_tf32
from mma import Role

# Of a batch's KV cache and mask. At the paper's size a token takes 0.75 MiB of cache in float32: 10
# rows of 500 tokens. Half as much again is taken while rows that have finished are dropped.
CACHE_BYTES = 2**32
MASK_BYTES = 4  # for each pair of tokens, while the mask is put together; measured


def encode_prompts(
    prompts: list[tuple], tokenizer, config, progress: bool = False
) -> Iterator[Row]:
    """The row of each prompt (example, turn), or of a whole dialogue, turn None; its `unread` is
    set if a picture cannot be read."""
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


@torch.no_grad()
@in_tf32()
def answer_loss(model, tokenizer, examples: list, batch_size: int = 256) -> tuple[float, int]:
    """The sum of model.loss over all answer tokens of the examples, and the number of these tokens.
    Examples whose picture cannot be read are left out."""
    config, was_training, total, tokens = model.config, model.training, 0.0, 0
    bytes_a_token = 4 * (8 * config.d_model + 4 * config.d_ff)  # of a layer, roughly
    rows = encode_prompts([(example, None) for example in examples], tokenizer, config)
    readable = (row for row in rows if not row.unread)
    model.eval()
    for batch_rows in row_batches(readable, 0, batch_size, bytes_a_token):
        batch = collate(batch_rows, tokenizer.pad, config.image_size)
        batch = {name: x.to(model.embed.weight.device) for name, x in batch.items()}
        total += float(model.loss(**batch, num_targets=1))
        tokens += sum(row.role.count(Role.ANSWER) for row in batch_rows)
    model.train(was_training)
    return total, tokens


def mean_loss(sums: Iterable[tuple[float, int]]) -> dict:
    """{"loss": nats per answer token} of what answer_loss returned, in one process or several; {}
    where there is no answer token."""
    total, tokens = map(sum, zip(*sums))
    return {"loss": total / tokens} if tokens else {}


def are_free(answers: list[str], known) -> bool:
    """Are the answers free text? Then hardly one is said word by word. known: the closed set of
    answers, if there is one."""
    return not known and 2 * len(set(answers)) > len(answers)


def say_unread(results: list[dict], say, strict: bool = False) -> None:
    """Say how many of eval.answer_all's results have no answer, because a picture cannot be read.
    strict: raise DataError instead."""
    if not (unread := [r for r in results if r["unread"]]):
        return
    if strict:
        raise DataError(f"{unread[0]['id']}: {unread[0]['unread']}".removeprefix(": "))
    say(f"{len(unread):,} of {len(results):,} questions are not answered, and count as wrong: a "
        f"picture of theirs cannot be read, such as {unread[0]['unread']}")  # fmt: skip
