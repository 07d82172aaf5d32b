"""Ours against the same architecture built from transformers.

    python -m lab.bench train|generate        needs `pip install transformers`

Shapes:  B rows of a batch   T tokens of a row
"""

import contextlib
import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from engine.precision import autocast_of
from lab import bench_timing as timing
from lab.bench_timing import CUDA, DEVICE, USUAL, batch_of, rows_of, tiny, to_device, training_step
from lab.results import need
from mma import Role
from model import Config

# Theirs as it is and, where ours computes in a shorter format, in that one too
THEIRS = ["transformers, AdamW", f"transformers, AdamW, {USUAL.precision}"]
THEIRS = THEIRS if USUAL.precision != "float32" else THEIRS[:1]
STEPS = (*THEIRS, "ours, AdamW", "ours, Muon (as train.py)")
BATCHES = (1, 8, 64)


def theirs(config: Config, image: int):
    """The same architecture and sizes from transformers: SigLIP, a two-layer MLP, Llama, random
    weights. image: the id that stands for a picture."""
    import transformers as hf

    vision = hf.SiglipVisionConfig(
        hidden_size=config.encoder_width, intermediate_size=4 * config.encoder_width,
        num_hidden_layers=config.encoder_layers, num_attention_heads=config.encoder_heads,
        image_size=config.image_size, patch_size=config.patch_size, vision_use_head=False,
    )  # fmt: skip
    text = hf.LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layer, num_attention_heads=config.n_head,
        num_key_value_heads=config.n_kv_head, tie_word_embeddings=True,
        max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    both = hf.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image,
        image_seq_length=config.n_image_tokens, vision_feature_select_strategy="full",
        vision_feature_layer=-1, tie_word_embeddings=True,
    )  # fmt: skip
    both._attn_implementation = "sdpa"
    model = hf.LlavaForConditionalGeneration(both).to(DEVICE)
    model.model.vision_tower.requires_grad_(False)
    return model


def their_batch(batch: dict, image: int) -> dict:
    """Ours as transformers takes it: a picture for each place where one stands, labels instead of
    roles."""
    ids = batch["ids"].masked_fill(batch["role"] == Role.IMAGE, image)
    pixels = (batch["images"].float() - 127.5) / 127.5
    return {
        "input_ids": ids,
        "attention_mask": (batch["role"] != Role.PAD).long(),
        "pixel_values": pixels[batch["image_index"]],
        "labels": ids.masked_fill(batch["role"] != Role.ANSWER, -100),
    }


# --- Training


def train_arm(name: str):
    """A call is a training step at the default job's shape."""
    _, batches = timing.default_job()
    config, batch = batches.config, to_device(batches[timing.ORDINARY][0])
    model, optimizers = timing.trained(config)
    if name.startswith("transformers"):
        image = int(batch["ids"][batch["role"] == Role.IMAGE][0])
        model, inputs = theirs(config, image), their_batch(batch, image)
    trained = [p for p in model.parameters() if p.requires_grad]
    fused = torch.optim.AdamW(trained, timing.RATE, fused=True)
    if name.startswith("ours"):
        return training_step(model, optimizers if "Muon" in name else [fused], "mma", batch)

    shorter = autocast_of(USUAL) if name == THEIRS[-1] else contextlib.nullcontext()

    def their_step():
        with shorter:
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        fused.step()
        fused.zero_grad()

    return their_step


def peak_of(name: str) -> float:
    """Peak memory in MiB of three steps, in a process of its own: of the GPU, or of the whole
    process. getrusage's would begin at what the parent held."""
    step, status = train_arm(name), Path("/proc/self/status")
    for _ in range(3):
        step()
    if CUDA:
        return torch.cuda.max_memory_allocated() / 2**20
    lines = status.read_text().splitlines() if status.exists() else []
    held = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(held[0]) / 1024 if held else float("nan")


def train_step(args) -> list[list[str]]:
    need("transformers", "comparisons with it")
    t = timing.turns({name: train_arm(name) for name in STEPS}, args.repeats)
    _, batches = timing.default_job()
    rows, context = len(batches[timing.ORDINARY][0]["ids"]), multiprocessing.get_context("spawn")
    fastest = min(t[name] for name in THEIRS)
    table = [["step", "rows a second", "of transformers", "peak memory, MiB"]]
    for arm, seconds in t.items():
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            peak = pool.submit(peak_of, arm).result()  # an error, if the process dies
        ratio = f"{fastest / seconds:.2f}"
        table.append([arm, f"{rows / seconds:.0f}", ratio, f"{peak:.0f}"])
    return table


# --- Answering


def generate(args) -> list[list[str]]:
    """Greedy; prompts of 5 to 60 tokens and a picture, answers of 1 to 64 tokens, each row ending
    at its own length."""
    need("transformers", "comparisons with it")
    config = tiny()
    ours, other = timing.trained(config)[0].eval(), theirs(config, image=2).eval()
    table = [["batch", "ours: prefill, tokens/s", "decode", "theirs: prefill", "decode",
              "times as fast: prefill", "decode", "in all"]]  # fmt: skip
    for B in BATCHES:
        r = random.Random(B)
        rows = rows_of(config, [(r.randint(5, 60), 0) for _ in range(B)])
        lengths = [r.randint(1, 64) for _ in range(B)]
        batch = batch_of(config, rows)
        tokens, new = int((batch["role"] > 0).sum()), sum(lengths) - B
        we, they = our_answers(ours, batch), their_answers(other, rows, batch)
        one = [1] * B  # the prefill and its first token
        calls = {"we, 1": (we, one), "they, 1": (they, one), "we": (we, lengths),
                 "they": (they, lengths)}  # fmt: skip
        arms = {name: lambda f=f, n=n: f(n) for name, (f, n) in calls.items()}
        t = timing.turns(arms, args.repeats)
        prefill = [tokens / t[f"{who}, 1"] for who in ("we", "they")]
        decode = [new / (t[who] - t[f"{who}, 1"]) for who in ("we", "they")]
        speed = [prefill[0], decode[0], prefill[1], decode[1]]
        times = [prefill[0] / prefill[1], decode[0] / decode[1], t["they"] / t["we"]]
        table.append([str(B), *(f"{s:,.0f}" for s in speed), *(f"{x:.1f}" for x in times)])
    return table


def our_answers(model, batch: dict):
    """A function of the number of tokens to answer with, row by row."""
    return lambda lengths: model.generate(**batch, eos=-1, max_new_tokens=lengths)


def their_answers(model, rows: list, batch: dict):
    """The same of transformers, which decodes prompts that are padded on the left."""
    import transformers as hf

    T = batch["ids"].shape[1]
    inputs = {name: x for name, x in their_batch(batch, image=2).items() if name != "labels"}
    left = [torch.arange(T, device=DEVICE).roll(T - len(row.ids)) for row in rows]
    for name in ("input_ids", "attention_mask"):
        inputs[name] = torch.stack([x[i] for x, i in zip(inputs[name], left)])

    class Enough(hf.StoppingCriteria):
        def __init__(self, lengths):
            self.lengths = lengths

        def __call__(self, ids, scores, **kwargs):
            made = ids.shape[1] - T
            return torch.tensor([made >= length for length in self.lengths], device=DEVICE)

    def answer(lengths):
        stop = hf.StoppingCriteriaList([Enough(lengths)])
        options = dict(max_new_tokens=max(lengths), do_sample=False, stopping_criteria=stop)
        model.generate(**inputs, **options)

    return answer
