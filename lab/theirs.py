"""Against the same model from transformers: SigLIP, a two-layer MLP, Llama, with sdpa attention and
under the causal mask. Given our weights it computes our logits (tests/lab/test_bench.py), but that
LLaVA computes the last norm of the encoder and reads what comes before it.

    python -m lab.bench train|generate        needs `pip install transformers`

Shapes:  B rows of a batch   T tokens of a row
"""

import random
from functools import partial

import torch

from engine.options import arguments
from lab import timing
from lab.results import need
from lab.timing import DEVICE, USUAL, training_step
from mma import IMAGE, PAD, Role
from model import Config

BATCHES = (1, 8, 64)  # prompts that are answered at once
ADAMW = ["--preset", "tiny", "--device", DEVICE, "--optimizer", "adamw"]


def theirs(config: Config, image: int):
    """Random weights, the encoder frozen. image: the id of a picture's tokens."""
    need("transformers", "comparisons with it")
    import transformers as hf

    vision = hf.SiglipVisionConfig(
        hidden_size=config.encoder_width, intermediate_size=4 * config.encoder_width,
        num_hidden_layers=config.encoder_layers, num_attention_heads=config.encoder_heads,
        image_size=config.image_size, patch_size=config.patch_size, hidden_act="gelu",
        layer_norm_eps=1e-5, vision_use_head=False,
    )  # fmt: skip
    text = hf.LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layer, num_attention_heads=config.n_head,
        num_key_value_heads=config.n_kv_head, rms_norm_eps=config.norm_eps,
        max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=None,
        tie_word_embeddings=True,
    )  # fmt: skip
    both = hf.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image,
        image_seq_length=config.n_image_tokens, vision_feature_select_strategy="full",
        vision_feature_layer=-1, tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = hf.LlavaForConditionalGeneration(both).to(DEVICE)
    model.model.vision_tower.requires_grad_(False)
    return model


def as_theirs(batch: dict) -> dict:
    """Our batch as transformers takes it: labels instead of roles, and each picture as often as it
    is asked about."""
    ids, role, images = batch["ids"], batch["role"], batch["images"]
    return {
        "input_ids": ids,
        "attention_mask": (role != PAD).long(),
        "pixel_values": ((images.float() - 127.5) / 127.5)[batch["image_index"]],
        "labels": ids.masked_fill(role != Role.ANSWER, -100),
    }


def train_arms() -> dict:
    """name -> a training step at the default shape. Theirs is timed in float32 and, where ours
    computes in a shorter format, in that one too."""
    config, batch = timing.default_batch()
    image, arms = int(batch["ids"][batch["role"] == IMAGE][0]), {}
    for precision in dict.fromkeys(["float32", USUAL.precision]):
        args, model = arguments([*ADAMW, "--precision", precision]), theirs(config, image)
        optimizers = timing.optimizers_of(model, args)
        loss_of = lambda mask, model=model, **inputs: model(**inputs).loss
        name = "transformers, AdamW" + f", {precision}" * (precision != "float32")
        arms[name] = training_step(model, optimizers, "causal", as_theirs(batch), loss_of, args)
    for name, args in (("ours, AdamW", arguments(ADAMW)), ("ours, Muon (as train.py)", USUAL)):
        arms[name] = training_step(*timing.trained(config, args=args), "mma", batch)
    return arms


def train(args) -> list[list[str]]:
    arms = train_arms()
    t = timing.turns(arms, args.repeats)
    fastest = min(seconds for name, seconds in t.items() if name.startswith("transformers"))
    table = [["step", "ms a step", "times as fast as transformers"]]
    return table + [[name, f"{1000 * s:.1f}", f"{fastest / s:.2f}"] for name, s in t.items()]


def answerer(model, batch: dict):
    """A function of the number of tokens to answer each prompt with. transformers decodes prompts
    that are padded on the left, where ours are on the right."""
    import transformers as hf

    inputs = as_theirs(batch)
    T, pads = batch["ids"].shape[1], (batch["role"] == PAD).sum(1, keepdim=True)
    column = (torch.arange(T, device=DEVICE) - pads) % T
    for name in ("input_ids", "attention_mask"):
        inputs[name] = inputs[name].gather(1, column)
    del inputs["labels"]

    def answer(lengths: list[int]) -> list[list[int]]:
        limit = torch.tensor(lengths, device=DEVICE)
        enough = lambda ids, scores, **kwargs: ids.shape[1] - T >= limit
        stop = hf.StoppingCriteriaList([enough])
        options = dict(max_new_tokens=max(lengths), do_sample=False, stopping_criteria=stop)
        ids = model.generate(**inputs, **options)[:, T:].tolist()
        return [row[:length] for row, length in zip(ids, lengths)]

    return answer


def generate(args) -> list[list[str]]:
    """Greedy; prompts of 5 to 60 tokens and a picture, answers of 1 to 64 tokens, each row ending
    at its own length."""
    config = timing.tiny()
    ours, other = timing.trained(config)[0], theirs(config, image=2).eval()
    table = [["batch", "what", "tokens", "ours, ms", "transformers, ms", "times as fast"]]
    for B in BATCHES:
        r = random.Random(B)
        batch = timing.random_batch(config, [(r.randint(5, 60), 0) for _ in range(B)])
        lengths = [r.randint(1, 64) for _ in range(B)]
        we, they = partial(ours.generate, **batch, eos=-1), answerer(other, batch)
        arms = {
            "our prefill": partial(we, max_new_tokens=1),
            "their prefill": partial(they, [1] * B),
            "our answers": partial(we, max_new_tokens=lengths),
            "their answers": partial(they, lengths),
        }
        ours_1, theirs_1, ours_all, theirs_all = timing.turns(arms, args.repeats).values()
        read, new = int((batch["role"] != PAD).sum()), sum(lengths) - B
        for what, tokens, a, b in (
            ("prefill", read, ours_1, theirs_1),
            ("decoding", new, ours_all - ours_1, theirs_all - theirs_1),
            ("in all", read + new, ours_all, theirs_all),
        ):
            cells = [f"{tokens:,}", f"{1000 * a:.1f}", f"{1000 * b:.1f}", f"{b / a:.1f}"]
            table.append([str(B), what, *cells])
    return table
