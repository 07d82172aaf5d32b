"""What each token of a Hugging Face batch is, read from its ids: for bridge/hf.py.

Each row is cut after every answer header, the ids between a question and its answer, such as
"<|im_start|>assistant\\n". What follows a picture within its cut, the header included, is its
question: no answer is, and no later turn. Neither labels nor the ends of answers are needed, so
that training, prompts with earlier answers and every way of decoding agree.

Shapes:  B rows   T tokens of a call, with a cache the new ones
"""

from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mma import EXTRA_PAIRS, IMAGE, PAD, QUESTION, TEXT, Role

QUESTIONS = "A?", "Be it b"  # that begin and end otherwise


@dataclass
class Call:
    """The tokens of a forward pass: role and cut, int64 [B, T], which number the cuts of a row."""

    kind: str
    role: Tensor
    cut: Tensor
    masks: int = 0  # how many were made of them


def opens(kind: str, q: Role, k: Role) -> bool:
    return bool(EXTRA_PAIRS[kind](torch.tensor(q), torch.tensor(k)))


def kinds() -> list[str]:
    """The masks that can be had without telling answers from system text: those that open pictures
    and questions to pictures, and nothing else."""
    allowed = {(IMAGE, IMAGE), (IMAGE, QUESTION)}
    other = [(int(q), int(k)) for q in Role for k in Role if (q, k) not in allowed]
    return [kind for kind in EXTRA_PAIRS if not any(opens(kind, q, k) for q, k in other)]


def header_ends(ids: Tensor, header: list[int]) -> Tensor:
    """bool [B, T]: the last token of each answer header."""
    ends = torch.ones_like(ids).bool()
    for back, token in enumerate(reversed(header)):
        ends = ends & (F.pad(ids, (back, 0), value=-1)[:, : ids.shape[1]] == token)
    return ends


def roles(kind, ids, attention_mask, position_ids, pictures: list[int], header: list[int]) -> Call:
    """The call of ids [B, T]. attention_mask: [B, T] or, with what is cached, longer; or None.
    position_ids: packed documents begin at 0. pictures, header: ids that stand for pictures, and
    those that open an answer. ValueError for a picture whose question has no end."""
    B, T = ids.shape
    real = torch.ones_like(ids) if attention_mask is None else attention_mask[:, -T:].to(ids.device)
    picture = real.bool() & torch.isin(ids, ids.new_tensor(pictures))
    ends = real.bool() & header_ends(ids, header)
    cut = ends.cumsum(1) - ends.long()
    if position_ids is not None and position_ids.ndim == 2:  # Qwen's have three
        cut = cut + (position_ids.to(ids.device) == 0).cumsum(1)
    closed = ids.new_zeros(B, 2 * T + 1).scatter_reduce(1, cut, ends.long(), "amax").gather(1, cut)
    if len(bad := (picture & (closed == 0)).nonzero()):
        raise ValueError(
            "row {}, token {}: no answer header follows this picture, so its question is unknown: "
            "a prompt needs add_generation_prompt=True, and is read as a whole; no row may be cut "
            "before its answer".format(*bad[0].tolist())
        )
    asked = torch.where(picture, cut, -1).cummax(1).values == cut  # a picture stands before it
    role = torch.where(picture, IMAGE, torch.where(asked, QUESTION, TEXT))
    return Call(kind, role.masked_fill(real == 0, PAD), cut)


def check_labels(labels: Tensor | None, call: Call) -> None:
    """ValueError for a label that a picture reads, and so gives away."""
    if labels is None or not opens(call.kind, IMAGE, QUESTION):
        return
    if len(bad := ((call.role == QUESTION) & (labels.to(call.role.device) != -100)).nonzero()):
        raise ValueError(
            "row {}, token {}: a picture reads this token, so it cannot have a label ({} such "
            "labels): they are -100 from a picture up to its answer".format(
                *bad[0].tolist(), len(bad)
            )
        )


def guard_labels(model, args, given: dict) -> None:
    """check_labels as a hook before a model's forward: trl's SFTTrainer puts another one there."""
    ids, mask, labels = map(given.get, ("input_ids", "attention_mask", "labels"))
    if ids is not None and labels is not None and (mask is None or mask.ndim == 2):
        position = given.get("position_ids")
        call = roles(ids=ids, attention_mask=mask, position_ids=position, **model.mma)
        check_labels(labels, call)


# --- From a chat template


def rendered(processor, *said: str, system: str = "", **options) -> str:
    """A dialogue of a user and an assistant in turn, by a processor's or tokenizer's chat template.
    Templates of text take words; those of pictures take parts, of which words are one kind."""
    roles = ["system"] * bool(system) + ["user", "assistant"] * len(said)
    said = [system] * bool(system) + list(said)

    def parts(words: str) -> list[dict]:
        return [{"type": "text", "text": words}]

    text = ""
    for content in [parts] if hasattr(processor, "image_processor") else [str, parts]:
        chat = [{"role": role, "content": content(words)} for role, words in zip(roles, said)]
        with suppress(TypeError):  # words where parts were expected, or parts where words were
            text = processor.apply_chat_template(chat, tokenize=False, **options)
            if all(words.strip() in text for words in said):
                break
    return text


def common(a, b):
    """What two texts or two lists begin with."""
    return a[: next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))]


def header_of(processor) -> list[int]:
    """The ids between any question and its answer, by the chat template: what a prompt and a whole
    dialogue begin with, and of that what two questions end with. ValueError if there is none."""
    name, advice = type(processor).__name__, "give answer_header=[ids]"
    if not getattr(processor, "chat_template", None):
        raise ValueError(f"{name} has no chat template: {advice}")

    def ids(*said, **options):
        text = rendered(processor, *said, **options)
        return getattr(processor, "tokenizer", processor)(text, add_special_tokens=False).input_ids

    starts = [common(ids(q, add_generation_prompt=True), ids(q, "zebra")) for q in QUESTIONS]
    if header := common(*(start[::-1] for start in starts))[::-1]:
        return header
    raise ValueError(f"the chat template of {name} puts nothing before an answer: {advice}")
