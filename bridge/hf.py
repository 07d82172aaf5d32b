"""Modality-Mutual Attention in Hugging Face's vision-language models (transformers 5.6 or later).

    model = AutoModelForImageTextToText.from_pretrained(...)
    apply_mma(model, processor)     # forward(labels=...), generate, Trainer and PEFT work as before
    check_mma(model, inputs)        # proof on one batch; RuntimeError if the mask is not in force
    remove_mma(model)               # the plain model again

The text model gets an attention implementation of its own, transformers' public way to another
mask. Its masks are the family's, with their pads, windows, packed documents and cache, and the
pairs of mma.EXTRA_PAIRS besides. Which token is what is read from the ids (hf_roles.py). Weights,
configuration and saved files stay as they are: after loading, apply_mma is called again.

Shapes:  B rows   T tokens of a call, with a cache the new ones
"""

import functools
import inspect
import sys
from contextvars import ContextVar

import torch

from bridge.hf_roles import check_labels, guard_labels, header_of, kinds, opens, roles
from mma import EXTRA_PAIRS, IMAGE, PAD, QUESTION, TEXT

NEEDED = "bridge.hf needs transformers 5.6 or later: pip install 'transformers>=5.6'"
try:
    import transformers
    from transformers import AttentionInterface, AttentionMaskInterface, masking_utils
    from transformers.integrations.flex_attention import flex_attention_forward
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
except ImportError as error:
    raise ImportError(f"{NEEDED} ({error})") from None
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 6):
    raise ImportError(f"{NEEDED} (this is {transformers.__version__})")

PICTURES = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
TYPES = ("mm_token_type_ids", "token_type_ids")  # which tokens are pictures, in some families
CALL = ContextVar("mma_call", default=None)  # the hf_roles.Call of the forward pass under way


# --- The mask


def opening(make):
    """transformers' mask function `make`, with what the forward pass under way opens."""

    def make_opened(*args, mask_function=masking_utils.causal_mask_function, **options):
        call, at = CALL.get(), options.get("cache_position")  # of older versions
        T, start = (
            (len(at), at[0]) if at is not None else (options["q_length"], options["q_offset"])
        )
        if call is None and T > 1:
            raise RuntimeError(
                "MMA knows no roles here: call the whole model, with a dynamic cache"
            )
        if call is not None:
            call.masks += 1
        if call is None or call.kind == "causal" or not (call.role == IMAGE).any():
            return make(*args, mask_function=mask_function, **options)
        role, cut, end = call.role, call.cut, start + call.role.shape[1]

        def opened(b, h, q, k):  # row, head, query, key; keys before `start` are in the cache
            i, j = (x.clamp(start, end - 1) - start for x in (q, k))
            pair = EXTRA_PAIRS[call.kind](role[b, i], role[b, j]) & (cut[b, i] == cut[b, j])
            return mask_function(b, h, q, k) | (pair & (k > q) & (k < end))

        return make(*args, mask_function=opened, **{**options, "allow_is_causal_skip": False})

    return make_opened


def eager_attention(module, *args, **options):
    """The family's own: each modeling file has one, and the interface knows none of them."""
    family = sys.modules[type(module).__module__]
    return family.eager_attention_forward(module, *args, **options)


IMPLEMENTATIONS = {"sdpa": sdpa_attention_forward, "eager": eager_attention}
IMPLEMENTATIONS["flex_attention"] = flex_attention_forward
for name, attention in IMPLEMENTATIONS.items():
    AttentionInterface.register(f"mma_{name}", attention)
    mask = getattr(masking_utils, f"{name}_mask")
    AttentionMaskInterface.register(f"mma_{name}", opening(mask))


def with_roles(forward):
    """A model's forward that reads the roles first. wraps: Trainer and generate read its names."""
    names = inspect.signature(forward)

    @functools.wraps(forward)
    def forward_with_roles(self, *args, **kwargs):
        given = names.bind_partial(self, *args, **kwargs).arguments
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if CALL.get() is not None:  # the outer forward has read them
            return forward(self, *args, **kwargs)
        if ids is None:
            raise ValueError("MMA reads roles from input_ids, which are missing")
        if ids.shape[1] == 1:  # a step of decoding is causal over the cache
            return forward(self, *args, **kwargs)
        if mask is not None and getattr(mask, "ndim", 0) != 2:
            raise ValueError("attention_mask must be [B, T], 1 for a token: MMA makes the rest")
        call = roles(
            ids=ids, attention_mask=mask, position_ids=given.get("position_ids"), **self.mma
        )
        lost = [n for n in TYPES if n in names.parameters and given.get(n) is None]
        if lost and (call.role == IMAGE).any():  # the family would go on without, and say nothing
            raise ValueError(f"{lost[0]} is missing: pass on all that the processor returns")
        check_labels(given.get("labels"), call)
        token = CALL.set(call)
        try:
            out = forward(self, *args, **kwargs)
        finally:
            CALL.reset(token)
        if not call.masks:
            raise RuntimeError("MMA is not in force: another attention implementation was set")
        return out

    return forward_with_roles


# --- On a model


def parts(model):
    """The model itself, where PEFT wraps it, and name and configuration of its text model, or None.
    ValueError if it is none of transformers' models."""
    vlm = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(vlm, transformers.PreTrainedModel):
        raise ValueError(f"{type(vlm).__name__} is no model of transformers")
    text = vlm.config.get_text_config()
    return vlm, next((name for name, c in vars(vlm.config).items() if c is text), None), text


def check_family(vlm, text_name: str | None, text) -> None:
    """ValueError, in one line, for a model that cannot have the mask."""
    name = type(vlm).__name__
    if text_name is None or not any(hasattr(vlm.config, n) for n in PICTURES):
        raise ValueError(f"{name} has no image tokens: MMA needs a vision-language model")
    if getattr(text, "use_bidirectional_attention", None) not in (None, False, "vision"):
        raise ValueError(f"{name} reads its whole prompt both ways: MMA has nothing to open")
    if vlm.config.is_encoder_decoder or getattr(text, "cross_attention_layers", None):
        raise ValueError(f"{name} reads pictures by cross-attention: none is a token of its text")
    if (was := text._attn_implementation) not in IMPLEMENTATIONS:
        raise ValueError(f"{was} takes no mask of ours: load with attn_implementation='sdpa'")


def apply_mma(model, processor=None, *, kind="mma", answer_header: list[int] | None = None):
    """Give a vision-language model the mask `kind`, one of hf_roles.kinds(), in place; returns it.
    PEFT's wrapper may be around it. answer_header: the ids that open an answer (default: by the
    processor's chat template). ValueError, in one line, for what cannot have the mask."""
    if kind not in kinds():
        raise ValueError(f"no mask {kind!r} here; there are {', '.join(kinds())}")
    vlm, text_name, text = parts(remove_mma(model))
    check_family(vlm, text_name, text)
    header = list(answer_header or header_of(processor))
    pictures = sorted({getattr(vlm.config, n, None) for n in PICTURES} - {None})
    vlm.set_attn_implementation({text_name: f"mma_{text._attn_implementation}"})
    for part in {vlm, vlm.base_model}:  # trl calls the latter by itself
        # A class, for peft < 0.20 calls forward past all hooks; of the same name, as files keep it
        own = type(part)
        body = dict(forward=with_roles(own.forward), __module__=own.__module__)
        part.__class__ = type(own.__name__, (own,), body)
        part.mma = dict(kind=kind, pictures=pictures, header=header)
    vlm.mma_guard = vlm.register_forward_pre_hook(guard_labels, with_kwargs=True)
    return model


def remove_mma(model):
    """The plain model again, in place; returns it. One without MMA stays as it is."""
    vlm, text_name, text = parts(model)
    if hasattr(vlm, "mma"):
        vlm.mma_guard.remove()
        for part in {vlm, vlm.base_model}:
            part.__class__ = type(part).__mro__[1]
            del part.mma
        vlm.set_attn_implementation({text_name: text._attn_implementation.removeprefix("mma_")})
    return model


@torch.no_grad()
def check_mma(model, inputs) -> float:
    """Proof on one batch, as forward takes it: a changed word of a question must move the states of
    its picture (under causal and v2v it must not), and a changed last token, if it is of an answer,
    nothing before it. Returns how far the picture moved, mean |difference|. RuntimeError if the
    mask is not in force, ValueError for a batch without a question after a picture."""
    vlm, _, _ = parts(model)
    inputs, training = {k: v for k, v in inputs.items() if k != "labels"}, model.training
    ids, mask, position = map(inputs.get, ("input_ids", "attention_mask", "position_ids"))
    call = roles(ids=ids, attention_mask=mask, position_ids=position, **vlm.mma)
    header = vlm.mma["header"]
    words = (call.role == QUESTION) & ~torch.isin(ids, ids.new_tensor(header))
    if not words.any():
        raise ValueError("no question after a picture in this batch: check_mma needs one")
    b, asked = words.nonzero()[-1].tolist()
    role, last = call.role[b], int((call.role[b] != PAD).nonzero()[-1])
    others = [i for i in ids[b][role != IMAGE].tolist() if i not in header]

    def states(at=None):
        changed = ids.clone()
        if at is not None:
            changed[b, at] = next((i for i in others if i != ids[b, at]), int(ids[b, at]) ^ 1)
        out = model(**{**inputs, "input_ids": changed}, output_hidden_states=True)
        return out.hidden_states[-1][b].float()

    try:
        model.eval()
        plain = states()
        size, of_question = plain.abs().mean(), (states(asked) - plain).abs()
        of_answer = (states(last) - plain).abs() if role[last] == TEXT else 0 * plain
    finally:
        model.train(training)
    moved = of_question[(role == IMAGE) & (call.cut[b] == call.cut[b, asked])].mean().item()
    leak = of_answer[:last][role[:last] != PAD].max().item()
    if (moved > 1e-6 * size) != opens(vlm.mma["kind"], IMAGE, QUESTION) or leak > 1e-3 * size:
        found = f"the picture moved by {moved:.2g}, what stands before an answer by {leak:.2g}"
        raise RuntimeError(f"the mask {vlm.mma['kind']!r} is not in force: {found}")
    return moved
