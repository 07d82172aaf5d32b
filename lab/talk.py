"""Talk to a run: answers are streamed, and what was said stays in the KV cache.

    python eval.py RUN --image FILE --question "..."    one answer
    python eval.py RUN --image FILE                     a conversation; /image FILE shows another picture, an empty line ends it

Shapes:  t tokens of what is new   T columns of the cache that are filled
"""

from collections.abc import Iterator
from pathlib import Path

import torch

import data
from mma import Role, attention_mask, positions
from model import MLLM, Cache


class Conversation:
    """One dialogue. The mask is the run's: the rows of a picture read the question of their own turn, all else is causal; so the keys
    and values of earlier turns never change, and only what is new is computed."""

    def __init__(self, model: MLLM, tokenizer: data.Tokenizer, room: int = 2048):
        self.model, self.tokenizer, self.room = model, tokenizer, room  # room: tokens, pictures included
        self.cache = Cache(model, 1, room)
        self.T, self.position, self.turn = 0, 0, 0
        self.pending: list[int] = []  # of the last answer, what the model has not read yet

    def ask(self, message: str, images: list = (), max_new_tokens: int = 128) -> Iterator[str]:
        """The answer, piece by piece. message: with data.IMAGE where a picture stands. Raises DataError when there is no room left."""
        tokenizer, config = self.tokenizer, self.model.config
        asked, new = data.Example(list(images), [(message, "")]), data.Row()
        row = data.encode(asked, tokenizer, config.n_image_tokens, upto=0, text_first=config.text_first)
        if self.turn:
            new.add(self.pending, Role.ANSWER, self.turn)
            new.add(tokenizer.next, Role.TEXT, self.turn + 1)
            first = len(tokenizer.start)
            row.ids, row.role, row.turn = row.ids[first:], row.role[first:], [self.turn + 1] * (len(row.turn) - first)
        for name in ("ids", "role", "turn"):
            getattr(new, name).extend(getattr(row, name))
        new.images = row.images
        if self.T + len(new.ids) + max_new_tokens > self.room:
            raise data.DataError(f"no room for more: {self.T} of {self.room} tokens are taken")
        self.turn += 1
        return self._stream(data.collate([new], tokenizer.pad, config.image_size), max_new_tokens)

    @torch.inference_mode()
    def _read(self, ids, role, turn=None, images=None, picture=None) -> torch.Tensor:
        """The last hidden state [1, D] after t new tokens, int64 [1, t]."""
        model, t = self.model, ids.shape[1]
        grid = (model.config.grid, model.config.grid)
        mask = attention_mask(model.config.mask, role, turn, grid=grid)
        mask = torch.cat([mask.new_ones(1, 1, t, self.T), mask], -1)  # what is new reads all that was
        at = self.position + positions(model.config.mask, role, grid=grid)
        column = self.T + torch.arange(t, device=ids.device)[None]
        last = torch.full_like(ids[:, :1], t - 1)
        x = model.embed_row(ids, role, images, picture)
        hidden = model._decode(x, at, (mask, mask[:, :, -1:]), role == Role.IMAGE, self.T + t, last, self.cache, column)
        self.T, self.position = self.T + t, int(at[0, -1]) + 1
        return hidden[:, 0]

    @torch.inference_mode()
    def _stream(self, batch: dict, max_new_tokens: int) -> Iterator[str]:
        device, said, shown = self.model.embed.weight.device, [], ""
        hidden = self._read(**{name: x.to(device) for name, x in batch.items()})
        for _ in range(max_new_tokens):
            token = int(self.model.head(hidden)[0].argmax())
            said.append(token)
            if token == self.tokenizer.eos:
                break
            text = self.tokenizer.decode(said)
            if not text.endswith("\ufffd"):  # half of a character
                yield text[len(shown):]
                shown = text
            if len(said) < max_new_tokens:
                hidden = self._read(torch.tensor([[token]], device=device), torch.tensor([[int(Role.ANSWER)]], device=device))
        if (text := self.tokenizer.decode(said)) != shown:
            yield text[len(shown):]
        self.pending = [said[-1]] + (self.tokenizer.end[1:] if said[-1] == self.tokenizer.eos else self.tokenizer.end)


def converse(model: MLLM, tokenizer: data.Tokenizer, image: Path) -> None:
    """Read questions from the keyboard until an empty line or the end of the input."""
    talk, images = Conversation(model, tokenizer), [image]
    data.pixels_of(image, model.config.image_size, "")
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return print()
        if not line:
            return
        try:
            if line.startswith("/image "):
                data.pixels_of(Path(line[7:].strip()), model.config.image_size, "")
                images.append(Path(line[7:].strip()))
                continue
            for piece in talk.ask(data.IMAGE * len(images) + line.replace(data.IMAGE, " "), images):
                print(piece, end="", flush=True)
            print()
            images = []
        except data.DataError as error:
            print(f"error: {error}")
