"""Other methods beside a mask: each overrides one class or one method of model.py, or the data.

    python train.py --variant NAME            with any --mask
    python -m lab.variants                    what there is

To add one, write a small class or function like those below and a line in VARIANTS; train.py,
eval.py and lab/compare.py then know it by its name.

Shapes:  B rows   T tokens of a row   t queries   H query heads   G key/value heads   d head width
         D decoder width   n image tokens of a picture
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import data
from engine.run import one_line_errors
from engine.wings import VARIANTS, Variant
from lab import dialogues  # noqa: F401 - registers its variants
from mma import IMAGE, attention_mask
from model import MLLM, Attention, AttentionContext, rotate

# --- CCA: image tokens numbered by rings


def rings(H: int, W: int, device=None) -> Tensor:
    """int64 [H * W] in reading order: the ring of each image token, 0 = the outermost (CCA, arXiv
    2410.15926)."""
    r, c = torch.arange(H, device=device)[:, None], torch.arange(W, device=device)[None, :]
    return torch.minimum(torch.minimum(r, H - 1 - r), torch.minimum(c, W - 1 - c)).flatten()


def ring_positions(role: Tensor, document: Tensor | None, grid: int) -> Tensor:
    """int64 [B, T]: tokens are counted as in mma.positions, but those of a picture of grid x grid
    tokens by rings: its first position + ring; the text after it goes on at first position + number
    of rings. Raises ValueError where the image tokens are no such pictures."""
    is_image, ring_of = role == IMAGE, rings(grid, grid, role.device)
    n, found = len(ring_of), is_image.sum(1).tolist()
    if any(tokens % n for tokens in found):
        raise ValueError(f"pictures of {n} tokens do not fit the rows' image tokens, {found}")
    index = (is_image.cumsum(1) - 1) % n  # of an image token in its picture
    step = torch.where(is_image, (index == n - 1) * (ring_of.max() + 1), 1)
    start = step.cumsum(1) - step
    if document is not None:
        first = F.pad(document[:, 1:] != document[:, :-1], (1, 0))
        start = start - (start * first).cummax(1).values
    return start + ring_of[index] * is_image


class ConcentricMLLM(MLLM):
    """CCA, concentric causal attention: an image token reads its own ring and those around it. With
    --mask mma image rows read the question's columns besides."""

    def context_of(self, mask, role, turn=None, document=None):
        position = ring_positions(role, document, self.config.grid)
        return AttentionContext(attention_mask(mask, role, turn, document, position), position)


# --- Additions to attention, exactly nothing at the first step


@dataclass
class ImageContext(AttentionContext):
    """A context that also says which of the new tokens are those of a picture."""

    is_image: Tensor | None = None  # bool [B, s]


class WiderAttention(Attention):
    """Scores gain a term on visual keys. A score is a dot product, so what it gains is appended to
    q and k (`bias_dims` numbers): one call of attention, no bias tensor."""

    bias_dims = 0

    def __init__(self, config, layer: int):
        super().__init__(config, layer)
        self.key_width = self.head_width + self.bias_dims

    def queries_keys_values(self, x: Tensor, context: AttentionContext):
        q, k, v = (
            y.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for y in (self.q(x), self.k(x), self.v(x))
        )
        is_image = getattr(context, "is_image", None)  # a generated token belongs to no picture
        is_image = x.new_zeros(x.shape[:2]) if is_image is None else is_image
        more_q, more_k = self.bias_as_qk(q, k, is_image[:, None, :, None].to(k.dtype))
        q, k = rotate(q, *context.rotation), rotate(k, *context.rotation)
        return torch.cat([q, more_q], -1), torch.cat([k, more_k], -1), v

    def bias_as_qk(self, q: Tensor, k: Tensor, is_image: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, T, bias_dims] and [B, G, T, bias_dims] for q and k before RoPE; the score will be
        divided by sqrt(d). is_image: 1 for a picture's token, else 0, [B, 1, T, 1]."""
        raise NotImplementedError


class PairGateAttention(WiderAttention):
    """RAVE-style: (Wq^T q_i) . (Wk^T k_j) / sqrt(r), from queries and keys before RoPE. It is a
    reconstruction from the abstract of arXiv 2605.18359, whose formula we do not have."""

    # r; LowRankAttention then has as many parameters where H = 2 G
    bias_dims = 7

    def __init__(self, config, layer: int):
        super().__init__(config, layer)
        heads = {"wq": config.n_head, "wk": config.n_kv_head}
        self.gate = nn.ParameterDict(
            [(name, torch.zeros(n, self.head_width, self.bias_dims)) for name, n in heads.items()]
        )

    def init_gate(self) -> None:
        nn.init.normal_(self.gate.wq, std=self.head_width**-0.5)

    def bias_as_qk(self, q, k, is_image):
        scale = self.head_width**0.5 / self.bias_dims**0.5
        return q @ self.gate.wq * scale, k @ self.gate.wk * is_image


class ScalarGateAttention(WiderAttention):
    """A control: a learned number for each head on visual keys, without a look at query and key."""

    bias_dims = 1

    def __init__(self, config, layer: int):
        super().__init__(config, layer)
        self.gate = nn.ParameterDict({"bias": torch.zeros(config.n_head, 1, 1)})

    def init_gate(self) -> None:
        pass

    def bias_as_qk(self, q, k, is_image):
        bias = self.gate.bias.to(q.dtype) * self.head_width**0.5
        return bias.expand(*q.shape[:-1], 1), is_image.expand(*k.shape[:-1], 1)


class LowRankAttention(Attention):
    """A control: the projections of q and k gain a low-rank term (LoRA, arXiv 2106.09685), with as
    many parameters as the pair gate."""

    rank = 3

    def __init__(self, config, layer: int):
        super().__init__(config, layer)
        d = self.head_width
        self.gate = nn.ParameterDict(
            [  # pairs, because of a dict it would sort the names
                ("down", torch.zeros(config.d_model, 2 * self.rank)),
                ("up_q", torch.zeros(self.rank, config.n_head * d)),
                ("up_k", torch.zeros(self.rank, config.n_kv_head * d)),
            ]
        )

    def init_gate(self) -> None:
        nn.init.normal_(self.gate.down, std=len(self.gate.down) ** -0.5)

    def queries_keys_values(self, x, context):
        down_q, down_k = self.gate.down.chunk(2, 1)
        q, k, v = self.q(x), self.k(x), self.v(x)
        q, k = q + x @ down_q @ self.gate.up_q, k + x @ down_k @ self.gate.up_k
        q, k, v = (y.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for y in (q, k, v))
        return rotate(q, *context.rotation), rotate(k, *context.rotation), v


class GatedMLLM(MLLM):
    def __init__(self, config):
        super().__init__(config)
        for block in self.blocks:  # last, so that all else is drawn as without a gate
            block.attention.init_gate()

    def context_of(self, mask, role, turn=None, document=None):
        context = super().context_of(mask, role, turn, document)
        return ImageContext(**vars(context), is_image=role == IMAGE)


class PairGateMLLM(GatedMLLM):
    attention_class = PairGateAttention


class ScalarGateMLLM(GatedMLLM):
    attention_class = ScalarGateAttention


class LowRankMLLM(GatedMLLM):
    attention_class = LowRankAttention


# --- The order of picture and question


class TextFirstTokenizer(data.Tokenizer):
    """In every message the text comes before the pictures (T&I)."""

    def arrange(self, parts: list[str]) -> list[str]:
        parts = super().arrange(parts)
        return sorted(parts, key=lambda part: part == data.IMAGE_TOKEN)  # the sort is stable


class DualOrder(data.Wrapped):
    """DOT, dual-order training: a source whose messages have the text before the pictures in the
    first half of each stage's steps, and after them in the second half."""

    def __init__(self, source, args):
        super().__init__(source)
        self.half = {"pt": args.pt_steps // 2, "sft": args.steps // 2}

    def draw(self, stage: str, step: int, *key) -> list[data.Example]:
        examples = self.source.draw(stage, step, *key)
        return list(map(text_first, examples)) if step < self.half[stage] else examples


def text_first(example: data.Example) -> data.Example:
    turns = []
    for message, answer in example.turns:
        pieces = message.split(data.IMAGE_TOKEN)
        text = " ".join(piece.strip() for piece in pieces if piece.strip())
        turns.append((text + (len(pieces) - 1) * data.IMAGE_TOKEN, answer))
    return replace(example, turns=turns)


# ------------------------------------------------------------------------------------------------


VARIANTS |= {
    "cca": Variant("image tokens numbered by rings (arXiv 2410.15926)", ConcentricMLLM),
    "rave": Variant("RAVE-style pair gate on visual keys (after arXiv 2605.18359)", PairGateMLLM),
    "scalar": Variant("control: a number for each head on visual keys", ScalarGateMLLM),
    "lora": Variant("control: low-rank q and k, as many parameters as rave", LowRankMLLM),
    "text-first": Variant("question, then picture", tokenizer_class=TextFirstTokenizer),
    "dot": Variant("both orders, one after the other in each stage", wrap_source=DualOrder),
    "leaky-captions": Variant(
        "a lesson: in stage 1 the picture reads its own caption",
        settings={"pt_mask": "leaky", "allow_leaks": True},
    ),
}


if __name__ == "__main__":
    with one_line_errors():  # `| head` ends it, too
        for name, variant in VARIANTS.items():
            print(f"{name:<16}{variant.about}")
