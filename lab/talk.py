"""Talk to a run: answers are streamed, and what was said stays in the KV cache. A run that learned
from single questions is asked each one alone, with the pictures that were shown last.

    python -m lab.talk RUN --image FILE
    python -m lab.talk RUN --audio FILE.wav     a run that was trained on sounds

Without a file it begins without one. /image FILE shows one, /audio FILE plays one, /help says so,
an empty line ends the conversation.

Shapes:  t tokens of what is new   T columns of the cache that are filled   D width
"""

import argparse
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import data
from engine.asking import asked_picture
from engine.options import Parser
from engine.precision import check_device, default_device
from engine.run import one_line_errors, read_record
from eval import open_run
from mma import Role
from model import MLLM, AttentionContext, KVCache

END = "an empty line or Ctrl-D ends."


class Conversation:
    """One dialogue. The mask is the run's: the rows of a picture read the question of their own
    turn, all else is causal; so the keys and values of earlier turns never change, and only what is
    new is computed. room: tokens of the whole dialogue, pictures included. alone: every question
    begins anew, with the pictures that were shown last."""

    def __init__(self, model: MLLM, tokenizer: data.Tokenizer, room=2048, alone=False):
        self.model, self.tokenizer, self.room, self.alone = model, tokenizer, room, alone
        self.cache, self.shown = KVCache(model, 1, room), []
        self.T, self.position, self.turn = 0, 0, 0
        self.pending: list[int] = []  # of the last answer, what the model has not read yet

    def free(self, n_images: int, max_new_tokens: int = 128) -> int:
        """Tokens that the words of the next message may have, beside so many pictures, the
        template and the answer."""
        tokenizer, pictures = self.tokenizer, n_images * self.model.config.n_image_tokens
        template = len(self.pending) + len(tokenizer.next) + len(tokenizer.opening)
        return self.room - self.T - template - pictures - max_new_tokens

    def ask(self, message: str, images: list = (), max_new_tokens: int = 128) -> Iterator[str]:
        """The answer, piece by piece. message: with data.IMAGE_TOKEN where a picture stands. Raises
        DataError if the message is too long, and "no room for more" if any would be."""
        tokenizer, config = self.tokenizer, self.model.config
        if self.alone and not images:
            message, images = data.IMAGE_TOKEN * len(self.shown) + message, self.shown
        self.shown = list(images)
        asked, new = data.Example(list(images), [(message, "")]), data.Row()
        row = data.encode(asked, tokenizer, config.n_image_tokens, upto=0)
        if self.turn:
            new.add(self.pending, Role.ANSWER, self.turn)
            new.add(tokenizer.next, Role.TEXT, self.turn + 1)
            first = len(tokenizer.start)
            row.ids, row.role = row.ids[first:], row.role[first:]
            row.turn = [self.turn + 1] * len(row.ids)
        for name in ("ids", "role", "turn"):
            getattr(new, name).extend(getattr(row, name))
        new.images = row.images
        if self.T + len(new.ids) + max_new_tokens > self.room:
            free = self.free(len(images), max_new_tokens)
            if free < 1:
                raise data.DataError(f"no room for more: {self.T} of {self.room} tokens are taken")
            raise data.DataError(
                f"the message is too long: {len(new.ids)} tokens, and its words may have about "
                f"{free}; ask in fewer words"
            )
        self.turn += not self.alone
        return self._stream(data.collate([new], tokenizer.pad, config.image_size), max_new_tokens)

    def _stream(self, batch: dict, max_new_tokens: int) -> Iterator[str]:
        model, tokenizer, said, shown = self.model, self.tokenizer, [], ""
        batch = {name: x.to(model.embed.weight.device) for name, x in batch.items()}
        context = self._context(batch["role"], batch["turn"])
        options = dict(eos=tokenizer.ends, max_new_tokens=max_new_tokens, context=context)
        for _, token in model.generate_steps(**batch, **options):
            said.append(token)
            text = tokenizer.decode(said)
            if not text.endswith("\ufffd"):  # half of a character
                yield text[len(shown) :]
                shown = text
        if (text := tokenizer.decode(said)) != shown:
            yield text[len(shown) :]
        if self.alone:
            return
        self.T += batch["ids"].shape[1] + len(said) - 1
        self.position = int(context.position[0, -1]) + len(said)
        unread = [] if said[-1] in tokenizer.ends else said[-1:]
        self.pending = unread + tokenizer.end

    def _context(self, role, turn) -> AttentionContext:
        """Of t new tokens, which read all that came before and stand after it."""
        context, t = self.model.context_of(self.model.config.mask, role, turn), role.shape[1]
        past = context.attention_mask.new_ones(1, 1, t, self.T)
        context.attention_mask = torch.cat([past, context.attention_mask], -1)
        context.position = context.position + self.position
        context.cache = self.cache
        context.column = self.T + torch.arange(t, device=role.device)[None]
        return context


def learned_alone(trained: dict) -> bool:
    """Did a run, of these arguments, learn from single questions about pictures alone? It answers a
    second question best as if it were the first (docs/results.md)."""
    dialogues = trained["data"] in ("llava", *data.TEXT_WORLDS) or trained.get("llm")
    return not dialogues and "dialogues" not in (trained["variant"] or "")


def help_of(name: str, shown: bool) -> str:
    """What may be typed now, of a run on the data set of that name. shown: whether there is
    something to ask about."""
    if name in data.TEXT_WORLDS:
        return f"Ask in words; {END}"
    file = "/audio FILE" if name in data.AUDIO_WORLDS else "/image FILE"
    if shown:
        return f"Ask about it. {file} gives another one; {END}"
    return f"{file} gives something to ask about; {END}"


def converse(talk: Conversation, look: Callable, images: list, name: str) -> None:
    """Read questions from the keyboard until an empty line or the end of the input. look(free,
    image, audio): the picture that a file is to the model; free: tokens that are left beside it.
    images: those that the conversation begins with; name: of the run's data set."""
    shown = bool(images)
    print(help_of(name, shown))
    while True:
        try:
            line = input("> ").strip()
            if not line:
                return
            command, _, file = line.partition(" ")
            if command in ("/image", "/audio") and file:
                images.append(look(talk.free(len(images) + 1), **{command[1:]: path_of(file)}))
                shown = True
            elif line.startswith("/") or line in ("quit", "exit"):
                print(help_of(name, shown))
            else:
                answer(talk, line, images)
        except (EOFError, KeyboardInterrupt):
            return print()
        except data.DataError as error:
            print(f"error: {error}")
            if str(error).startswith("no room for more:"):
                return


def answer(talk: Conversation, line: str, images: list) -> None:
    """Print what the model says to a line. images: those that it has not seen yet; emptied when it
    has."""
    message = data.IMAGE_TOKEN * len(images) + line.replace(data.IMAGE_TOKEN, " ")
    for piece in talk.ask(message, images):
        print(piece, end="", flush=True)
    print()
    images.clear()


def path_of(text: str) -> Path:
    """A path as it was typed, or as a terminal pastes it: in quotes, or with backslashes before
    spaces. ~ may stand for a user's folder."""
    text = text.strip()
    if os.path.exists(text):
        return Path(text)
    try:
        pasted = shlex.split(text) if os.name == "posix" else [text.strip('"')]
    except ValueError:  # an apostrophe, say: not the quotes of a shell
        pasted = []
    text = pasted[0] if len(pasted) == 1 else text
    try:
        return Path(text).expanduser()
    except RuntimeError:  # a user who is not known
        raise data.DataError(f"{text}: no such user; give the path without ~") from None


def arguments(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder that --out named")
    add("--image", type=Path, metavar="FILE", help="a picture to begin with")
    add("--audio", type=Path, metavar="FILE", help="a WAV file to begin with")
    add("--device", default=default_device(), metavar="NAME", help="cuda, mps or cpu")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = arguments(argv)
    with one_line_errors():
        check_device(args.device)
        if args.image and args.audio:
            raise data.DataError("--image and --audio: a conversation begins with one of them")
        trained = read_record(args.run)["args"]
        model, tokenizer = open_run(args.run, args.device)

        def look(free: int = 1, image: Path | None = None, audio: Path | None = None):
            if free < 1:
                why = "is left out: the conversation cannot hold one more"
                raise data.DataError(f"{image or audio} {why}")
            asked = argparse.Namespace(image=image, audio=audio)
            picture = asked_picture(asked, trained, args.run)
            data.pixels_of(picture, model.config.image_size, "")  # a file that cannot be read
            return picture

        images = [look(image=args.image, audio=args.audio)] if args.image or args.audio else []
        talk = Conversation(model, tokenizer, alone=learned_alone(trained))
        converse(talk, look, images, trained["data"])


if __name__ == "__main__":
    main()
