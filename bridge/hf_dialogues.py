"""From dialogues (data.Example) to what a Hugging Face processor makes of them, with labels on the
answers alone, and the model's own answers: for bridge/hf_finetune.py."""

from collections import Counter
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from bridge.hf_roles import header_ends, header_of
from data import IMAGE_TOKEN, Crop, DataError, Example
from data.pictures import open_picture
from eval import normalise, score


@dataclass
class Row:
    """A dialogue, or a prompt, before the processor sees it."""

    text: str  # by the chat template
    pictures: list[Image.Image]
    answers: list[list[int]]  # the ids of each, with the token that ends it; of a prompt none


class Dialogues:
    """What a processor makes of examples. Rows that cannot be used are left out, counted in
    `left_out` (why -> rows), and said once. ends: the ids that end an answer (model's generation).
    """

    def __init__(self, processor, ends: list[int], max_tokens: int, say=print):
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.max_tokens, self.say, self.left_out, self.said = max_tokens, say, Counter(), set()
        self.header, self.eos, self.end = header_of(processor), self.tokenizer.eos_token_id, ""
        self.ends = {*ends, self.eos} - {None}
        if self.ids_of(self.text([("a", "b")]))[-1] not in self.ends:
            self.end = self.tokenizer.eos_token or ""
            self.say(f"the chat template does not end answers: {self.end!r} is added to the last")

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def ids_of(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def text(self, turns: list[tuple[str, str]], prompt: bool = False) -> str:
        """A dialogue by the chat template; with `prompt` the prompt for its last answer."""
        chat = []
        for message, answer in turns:
            chat.append({"role": "user", "content": contents(message)})
            said = [{"type": "text", "text": answer.strip()}]
            chat.append({"role": "assistant", "content": said})
        if prompt:
            options = dict(tokenize=False, add_generation_prompt=True)
            return self.processor.apply_chat_template(chat[:-1], **options)
        return self.processor.apply_chat_template(chat, tokenize=False).rstrip() + self.end

    def row(self, example: Example, upto: int | None = None) -> Row:
        """The dialogue; with `upto` the prompt for the answer of that turn (0 = first). DataError
        if a picture cannot be read, or an answer is not found behind its header."""
        prompt = upto is not None
        turns = example.turns[: upto + 1] if prompt else example.turns
        text, answers = self.text(turns, prompt), []
        ids = self.ids_of(text)
        if len(starts := self.starts(ids)) != len(turns):
            raise DataError("its text holds the header of an answer")
        for k, start in enumerate([] if prompt else starts):
            part = self.ids_of(self.text(turns[: k + 1]))
            answer = part[self.starts(part)[-1] :]
            if self.end and k + 1 < len(turns):
                answer.pop()  # it ends the last answer alone
            if ids[start : start + len(answer)] != answer:
                raise DataError("the chat template rewrites an answer")
            answers.append(answer)
        shown = sum(message.count(IMAGE_TOKEN) for message, _ in turns)
        return Row(text, [picture(image) for image in example.images[:shown]], answers)

    def starts(self, ids: list[int]) -> list[int]:
        """Where the answers of a row begin."""
        return (header_ends(torch.tensor([ids]), self.header)[0].nonzero()[:, 0] + 1).tolist()

    def rows(self, examples: list[Example]) -> Iterator[Row]:
        for example in examples:
            try:
                yield self.row(example)
            except DataError as error:
                self.leave_out(f"{error}", example.id)

    def leave_out(self, why: str, where: str = "") -> None:
        if why not in self.said:
            self.say(f"left out: {where or 'a row'}: {why}; others alike are counted")
        self.said.add(why)
        self.left_out[why] += 1

    def inputs(self, rows: list[Row], side: str) -> dict[str, Tensor]:
        """The arguments of forward, padded on a side."""
        self.tokenizer.padding_side = side
        pictures = [row.pictures for row in rows]
        begins = self.tokenizer.bos_token and rows[0].text.startswith(self.tokenizer.bos_token)
        return dict(
            self.processor(
                text=[row.text for row in rows], images=pictures if any(pictures) else None,
                padding=True, return_tensors="pt", add_special_tokens=not begins,
            )
        )  # fmt: skip

    def batch(self, examples: list[Example]) -> dict[str, Tensor] | None:
        """The arguments of forward with labels, -100 but on the answers; None if no row is left."""
        rows = list(self.rows(examples))
        lengths = self.inputs(rows, "right")["attention_mask"].sum(1).tolist() if rows else []
        for n in lengths:
            if n > self.max_tokens:
                self.leave_out(f"more than --max-tokens {self.max_tokens}")
        rows = [row for row, n in zip(rows, lengths) if n <= self.max_tokens]
        if not rows:
            return None
        inputs = self.inputs(rows, "right")  # again, where a row has gone
        labels = torch.full_like(inputs["input_ids"], -100)
        for row, ids, of_row in zip(rows, inputs["input_ids"].tolist(), labels):
            for start, answer in zip(self.starts(ids), row.answers):
                of_row[start : start + len(answer)] = torch.tensor(answer)
        return {**inputs, "labels": labels}


def contents(message: str) -> list[dict]:
    """A message as chat templates take it: its pictures and its text, in their order."""
    parts = []
    for k, text in enumerate(message.split(IMAGE_TOKEN)):
        parts += [{"type": "image"}] * bool(k)
        parts += [{"type": "text", "text": text.strip()}] if text.strip() else []
    return parts


def picture(image) -> Image.Image:
    """An example's image in RGB. DataError if it cannot be read."""
    if isinstance(image, Tensor):
        return Image.fromarray(image.permute(1, 2, 0).numpy())
    if isinstance(image, Crop):
        return open_picture(image.path).crop(image.box)
    return open_picture(image)


# --- Held-out answers


@torch.no_grad()
def answer_all(model, dialogues: Dialogues, examples, known, batch_size: int) -> list[dict]:
    """The greedy answer to every turn, earlier ones given: results as eval.answer_all's."""
    known = known and {normalise(answer) for answer in known}
    prompts = [(e, turn) for e in examples for turn in range(len(e.turns))]
    lengths = [len(dialogues.ids_of(e.turns[turn][1])) for e, turn in prompts]
    limit, results = 2 * max(lengths, default=0) + 4, []
    model.eval()
    for k in tqdm(range(0, len(prompts), batch_size), desc="answering", leave=False):
        asked, rows, unread = prompts[k : k + batch_size], [], []
        for prompt in asked:
            try:
                rows.append(dialogues.row(*prompt))
                unread.append("")
            except DataError as error:
                unread.append(str(error))
        answers = iter(generate(model, dialogues, rows, limit))
        for prompt, why in zip(asked, unread):
            result = score(*prompt, [] if why else next(answers), dialogues, known)
            results.append({**result, "unread": why})
    return results


def generate(model, dialogues: Dialogues, rows: list, limit: int) -> list[list[int]]:
    """The new ids of each prompt, up to the token that ends an answer, which is eos."""
    if not rows:
        return []
    inputs = {k: x.to(model.device) for k, x in dialogues.inputs(rows, "left").items()}
    pad = dialogues.tokenizer.pad_token_id
    options = dict(max_new_tokens=limit, do_sample=False, num_beams=1, pad_token_id=pad)
    options["eos_token_id"] = sorted(dialogues.ends)
    answers = []
    for ids in model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist():
        n = next((n for n, i in enumerate(ids) if i in dialogues.ends), None)
        answers.append(ids if n is None else [*ids[:n], dialogues.eos])
    return answers


@torch.no_grad()
def loss_of(model, dialogues: Dialogues, examples, batch_size: int) -> float:
    """Mean cross-entropy of the answers' tokens, nats. DataError if no row can be used."""
    total, n, dialogues = 0.0, 0, copy(dialogues)
    dialogues.left_out = Counter()  # dialogues' own counts what training leaves out
    model.eval()
    for k in range(0, len(examples), batch_size):
        if batch := dialogues.batch(examples[k : k + batch_size]):
            batch = {name: x.to(model.device) for name, x in batch.items()}
            targets = int((batch["labels"][:, 1:] != -100).sum())
            total, n = total + float(model(**batch).loss) * targets, n + targets
    if not n:
        raise DataError("no held-out row can be used")
    return total / n
