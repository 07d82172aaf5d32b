"""Attention under a mask of mma.py, exactly, at little more than the price of causal attention; and what may be added to it (Gate).

A dense mask [T, T] keeps the flash kernels from skipping the half of it that is causal. But every kind of mma.py is the causal mask
and a few opened pairs, which lie in a small rectangle: for mma, image rows x question columns. `attend` therefore takes either

    a dense mask        scaled_dot_product_attention with a bool tensor: any mask, any device
    an Opened           the causal part by the flash kernel, without a mask; the rectangle beside it; joined by their log-sum-exp,
                        as FlashAttention joins its blocks (arXiv 2205.14135)

and `opened` says when the second is possible and pays: long rows on a CPU. On GPUs only the plain causal mask goes without a tensor.

Shapes:  B rows of a batch   T tokens of a row   t queries   H query heads   G key/value heads   d head width
         R rows and C columns of the rectangle
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mma import CONCENTRIC, OPENS, Role, may_attend, refuse

LONG = 512  # tokens of a row; below, a dense mask is as fast (bench.py mask)


@dataclass
class Opened:
    """The pairs that a mask opens beyond the causal mask, as a rectangle of some of them."""
    rows: Tensor     # int64 [B, R], distinct
    columns: Tensor  # int64 [B, C], distinct
    pairs: Tensor    # bool [B, 1, R, C], True = opened


def opened(kind: str, role: Tensor, turn: Tensor | None, document: Tensor | None) -> Opened | None:
    """The opened pairs of a batch (role, turn, document: as in mma.attention_mask), or None where the dense mask is to be used: short
    rows, packed documents, pads before the end of a row, kinds that move the positions; and, elsewhere than on a CPU, all kinds that open
    something."""
    if role.shape[1] < LONG or document is not None or kind in CONCENTRIC:
        return None
    table, pad = OPENS[kind](*torch.meshgrid(2 * [torch.arange(len(Role))], indexing="ij")), role == Role.PAD  # bool [query role, key role]
    gap = pad[:, :-1] & ~pad[:, 1:]
    if role.device.type not in ("cuda", "meta") and gap.any() or table.any() and role.device.type != "cpu":
        return None
    if not table.any():
        refuse(gap, lambda: "pads before the end of a row")  # only a GPU gets here with such: to ask would make the host wait
        none = role.new_zeros(len(role), 0)
        return Opened(none, none, torch.zeros(len(role), 1, 0, 0, dtype=torch.bool, device=role.device))

    def some(which: Tensor) -> Tensor:  # positions whose role is one of `which`; rows with fewer than the most are filled up with others
        here = which[role]
        return here.int().argsort(dim=1, descending=True, stable=True)[:, :int(here.sum(1).max())]

    rows, columns = some(table.any(1)), some(table.any(0))
    turn = torch.zeros_like(role) if turn is None else turn
    of = [(x.gather(1, rows)[:, :, None], x.gather(1, columns)[:, None, :]) for x in (role, turn, torch.zeros_like(role))]
    i, j = rows[:, :, None], columns[:, None, :]
    pairs = may_attend(kind, i, j, *(x for pair in of for x in pair)) & (j > i)
    return Opened(rows, columns, pairs[:, None])


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | Opened) -> Tensor:
    """q [B, H, t, d], k, v [B, G, T, d] -> [B, H, t, d of v]; scores are divided by sqrt(d of v). mask: bool [B, 1, t, T], True = may
    attend; or Opened, with t = T."""
    scale = v.shape[-1] ** -0.5  # q and k may be wider: Gate
    if isinstance(mask, Tensor) or mask.pairs.numel() == 0:
        if q.device.type == "cuda":  # of its kernels some do not know grouped heads, and the one left then stores all scores
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        how = dict(attn_mask=mask) if isinstance(mask, Tensor) else dict(is_causal=True)
        return F.scaled_dot_product_attention(q, k, v, **how, enable_gqa=q.shape[1] > k.shape[1], scale=scale)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    return CausalAnd.apply(q, k, v, mask.rows, mask.columns, mask.pairs, scale)


class CausalAnd(torch.autograd.Function):
    """Causal attention and a rectangle. Softmax over two sets of keys = the two softmaxes, each weighted by its share of exp(log-sum-exp);
    backward, each set's part needs nothing of the other but the joint output and log-sum-exp."""

    @staticmethod
    def forward(ctx, q, k, v, rows, columns, pairs, scale):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True, scale=scale)  # lse [B, H, T]
        qr, (kc, vc) = at(q, rows), (at(x, columns) for x in (k, v))
        scores = (qr @ kc.mT * scale).masked_fill(~pairs, -torch.inf)                                           # [B, H, R, C]
        first = at(lse[..., None], rows)
        joint = torch.logaddexp(first, scores.logsumexp(-1, keepdim=True))
        put(out, rows, at(out, rows) * (first - joint).exp() + (scores - joint).exp() @ vc)
        put(lse[..., None], rows, joint)
        ctx.save_for_backward(q, k, v, out, lse, rows, columns, pairs)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx, g):
        q, k, v, out, lse, rows, columns, pairs = ctx.saved_tensors
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(g, q, k, v, out, lse, 0.0, True, scale=ctx.scale)
        qr, gr, kc, vc = at(q, rows), at(g, rows), at(k, columns), at(v, columns)
        p = ((qr @ kc.mT * ctx.scale).masked_fill(~pairs, -torch.inf) - at(lse[..., None], rows)).exp()
        ds = p * (gr @ vc.mT - (gr * at(out, rows)).sum(-1, keepdim=True)) * ctx.scale
        for d, where, part in ((dq, rows, ds @ kc), (dk, columns, ds.mT @ qr), (dv, columns, p.mT @ gr)):
            put(d, where, at(d, where) + part)
        return dq, dk, dv, None, None, None, None


def at(x: Tensor, where: Tensor) -> Tensor:
    """x [B, H, T, d] at the positions [B, R] -> [B, H, R, d]."""
    return x.transpose(1, 2)[torch.arange(len(x))[:, None], where].transpose(1, 2)


def put(x: Tensor, where: Tensor, values: Tensor) -> None:
    """The inverse of `at`, in place."""
    x.transpose(1, 2)[torch.arange(len(x))[:, None], where] = values.transpose(1, 2)


# --------------------------------------------------------------------------------------------------------------------

GATES = ("none", "rave", "lora", "scalar")


class Gate(nn.Module):
    """What may be added to attention, exactly nothing at the first step. Pre-softmax scores gain, on visual keys j alone,

        rave    (Wq^T q_i) . (Wk^T k_j) / sqrt(r), from queries and keys before RoPE: RAVE-style, a reconstruction from the
                abstract of arXiv 2605.18359, whose formula we do not have
        scalar  a learned number for each head: what a bias on visual keys does without a look at query and key
        lora    nothing; instead the projections of q and k gain a low-rank term (LoRA), with as many parameters as rave

    A score is a dot product, so what it gains is appended to q and k: one SDPA call, no bias tensor.
    """
    RANK, LORA_RANK = 7, 3  # these two have the same number of parameters where n_head = 2 n_kv_head

    def __init__(self, config, d: int):
        super().__init__()
        self.kind, self.d, H, G, D = config.gate, d, config.n_head, config.n_kv_head, config.d_model
        self.extra = {"rave": self.RANK, "scalar": 1}.get(self.kind, 0)  # numbers appended to q and k
        if self.kind == "rave":
            self.wq, self.wk = nn.Parameter(torch.zeros(H, d, self.RANK)), nn.Parameter(torch.zeros(G, d, self.RANK))
        if self.kind == "scalar":
            self.bias = nn.Parameter(torch.zeros(H, 1, 1))
        if self.kind == "lora":
            self.down = nn.Parameter(torch.zeros(D, 2 * self.LORA_RANK))
            self.up_q, self.up_k = nn.Parameter(torch.zeros(self.LORA_RANK, H * d)), nn.Parameter(torch.zeros(self.LORA_RANK, G * d))

    def low_rank(self, x: Tensor, name: str) -> Tensor:
        """What q or k gain from the layer's input [B, T, D] before they are split into heads."""
        down_q, down_k = self.down.chunk(2, 1)
        return x @ down_q @ self.up_q if name == "q" else x @ down_k @ self.up_k

    def appended(self, q: Tensor, k: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers appended to q [B, H, t, d] and k [B, G, T, d], both before RoPE; visual: bool [B, T]."""
        visual, scale = visual[:, None, :, None].to(k.dtype), self.d ** 0.5  # the score is divided by sqrt(d)
        if self.kind == "scalar":
            return (self.bias.to(q.dtype) * scale).expand(*q.shape[:-1], 1), visual.expand(*k.shape[:-1], 1)
        return q @ self.wq * (scale / self.RANK ** 0.5), k @ self.wk * visual
