"""How fast, against what: every claim about speed as a table that one command prints.

    python bench.py mask          a training step and a prefill under mma against causal, at 30 to 4,096 tokens a row
    python bench.py packing       dialogues of very different lengths, packed and padded
    python bench.py train         a training step against the same architecture built from transformers
    python bench.py generate      prefill and decoding against transformers' generate
    python bench.py loader        how much faster batches are made than trained on
    python bench.py size          the paper's shapes: parameters and memory; on a GPU also steps, memory and FLOPs that were measured
    python bench.py code          lines a file
    python bench.py accuracy      seconds from the command `python train.py` to 80 % (95 % with --target 0.95) on validation

--json FILE writes the numbers as well, --md FILE the table. The arms of a table take turns within one run, after a warm-up, and their
medians are compared: ratios hold on a noisy machine, absolute times only on the machine that the table names. train and generate
need `pip install transformers`; nothing else does.
"""

import argparse
import json
import multiprocessing
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

import attention
import data
import eval as evaluation
import train
from model import MLLM, Cache, Config

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
WHERE = torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads"
WHERE += f", torch {torch.__version__}, {'training in bfloat16, answering in float32' if CUDA else 'float32'}"


def turns(arms: dict, repeats: int, warmup: int = 2) -> dict[str, float]:
    """name -> median seconds of a call, the arms taking turns, every other round backwards: what a call leaves behind (memory, caches)
    is then not always the same arm's gain."""
    times = {name: [] for name in arms}
    for k in tqdm(range(repeats + warmup), desc="timing", leave=False):
        for name, call in list(arms.items())[::(-1) ** k]:
            began = time.perf_counter()
            call()
            if CUDA:
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(t[warmup:]) for name, t in times.items()}


def tiny(vocab: int = 600, **sizes) -> Config:
    return Config(vocab_size=vocab, **{**train.PRESETS["tiny"]["model"], **sizes})


def built_in() -> tuple[Config, dict]:
    """The default job's configuration and a batch of its stage 2, on the device."""
    args = train.arguments(["--preset", "tiny"])
    source = data.load("shapes")
    tokenizer = data.Tokenizer.train(source.texts(), args.vocab_size)
    config = train.config_of(args, tokenizer)
    batch = train.Steps(source, tokenizer, config, "sft", args)[0]
    return config, {name: x.to(DEVICE) for name, x in batch.items()}


def rows_of(config: Config, lengths: list[tuple[int, int]], pictures: int = 1) -> list[data.Row]:
    """Rows of random tokens: a picture or more, a question and an answer of these lengths."""
    out = []
    for i, (question, answer) in enumerate(lengths):
        row = data.Row()
        row.add([1], 1, 0)
        row.add([2] * config.n_image_tokens * pictures, 2, 1)
        row.add(torch.randint(4, config.vocab_size, (question,)).tolist(), 3, 1)
        row.add(torch.randint(4, config.vocab_size, (answer,)).tolist(), 4, 1)
        row.images = [torch.randint(256, (3, config.image_size, config.image_size), dtype=torch.uint8) for _ in range(pictures)]
        out.append(row)
    return out


def batch_of(config: Config, rows: list[data.Row]) -> dict:
    return {name: x.to(DEVICE) for name, x in data.collate(rows, 0, config.image_size).items()}


def step_of(model: MLLM, optimizers, batch: dict, kind: str):
    return lambda: train.update(model, optimizers, batch, kind, [1e-4] * len(optimizers), train.scaler_of(DEVICE))


def trained(config: Config) -> tuple[MLLM, list]:
    torch.manual_seed(0)
    model = MLLM(config).to(DEVICE)
    model.encoder.requires_grad_(False)
    return model, train.optimizers_of(model, train.arguments(["--preset", "tiny"]))


# --------------------------------------------------------------------------------------------------------------------
# Topics: each returns rows of cells, the first one the header

LENGTHS = (16, 12, 1, 256), (4, 24, 1, 1024), (1, 28, 4, 4096)  # rows, image tokens along a side, pictures, tokens of a row


def mask(args) -> list[list[str]]:
    """causal and mma as `attend` computes them, and mma with the dense mask."""
    table = [["tokens", "rows", "what", "causal, ms", "mma", "mma, dense mask"]]
    cases = [built_in()]
    for rows, grid, pictures, total in LENGTHS:
        config = tiny(image_size=16 * grid)
        answer = total - 1 - pictures * config.n_image_tokens - 64
        cases.append((config, batch_of(config, rows_of(config, [(64, answer)] * rows, pictures))))

    def dense(call):
        def inner():
            attention.LONG, long = 10**9, attention.LONG
            call()
            attention.LONG = long
        return inner

    for config, batch in cases:
        model, optimizers = trained(config)
        B, T = batch["ids"].shape
        last = torch.full((B, 1), T - 1, device=DEVICE)

        @torch.no_grad()
        def prefill(kind):
            inputs = {name: batch[name] for name in ("ids", "role", "images", "picture", "turn")}
            model(**inputs, kind=kind, read=last, cache=Cache(model, B, T))

        for what, call in (("training step", lambda kind: step_of(model, optimizers, batch, kind)()), ("prefill", prefill)):
            t = turns({"causal": lambda: call("causal"), "mma": lambda: call("mma"), "dense": dense(lambda: call("mma"))},
                      args.repeats)
            ratios = [f"{t[arm] / t['causal']:.2f}" for arm in ("mma", "dense")]
            table.append([f"{T:,}", str(B), what, f"{1000 * t['causal']:.1f}", *ratios])
    return table


def packing(args) -> list[list[str]]:
    """64 dialogues a step, lengths as in LLaVA's data: questions of 5 to 60 tokens, answers of 1 to 200."""
    config, r = tiny(), random.Random(0)
    rows = rows_of(config, [(r.randint(5, 60), r.randint(1, 200)) for _ in range(64)])
    model, optimizers = trained(config)
    batches = {"padded": batch_of(config, rows), "packed": batch_of(config, data.pack(rows))}
    t = turns({name: step_of(model, optimizers, batch, "mma") for name, batch in batches.items()}, args.repeats)
    return [["rows", "shape", "positions that hold a token", "dialogues a second", "of padded"]] + [
        [name, " x ".join(map(str, batch["ids"].shape)), f"{(batch['role'] > 0).float().mean():.1%}", f"{64 / t[name]:.0f}",
         f"{t['padded'] / t[name]:.2f}"] for name, batch in batches.items()]


def theirs(config: Config, image: int):
    """The same architecture and sizes from transformers: SigLIP, a two-layer MLP, Llama, random weights."""
    import transformers as hf
    vision = hf.SiglipVisionConfig(hidden_size=config.encoder_width, intermediate_size=4 * config.encoder_width, vision_use_head=False,
                                   num_hidden_layers=config.encoder_layers, num_attention_heads=config.encoder_heads,
                                   image_size=config.image_size, patch_size=config.patch_size)
    text = hf.LlamaConfig(vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.d_ff,
                          num_hidden_layers=config.n_layer, num_attention_heads=config.n_head, num_key_value_heads=config.n_kv_head,
                          tie_word_embeddings=True, max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=None)
    both = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=image, image_seq_length=config.n_image_tokens,
                          vision_feature_select_strategy="full", vision_feature_layer=-1, tie_word_embeddings=True)
    both._attn_implementation = "sdpa"
    model = hf.LlavaForConditionalGeneration(both).to(DEVICE)
    model.model.vision_tower.requires_grad_(False)
    return model


def their_batch(config: Config, batch: dict, image: int) -> dict:
    """Ours as transformers takes it: a picture for each place where one stands, labels instead of roles."""
    ids = batch["ids"].masked_fill(batch["role"] == 2, image)
    pixels = (batch["images"].float() - 127.5) / 127.5
    return {"input_ids": ids, "attention_mask": (batch["role"] > 0).long(), "pixel_values": pixels[batch["picture"]],
            "labels": ids.masked_fill(batch["role"] != 4, -100)}


STEPS = ("transformers, AdamW", "ours, AdamW", "ours, Muon (as train.py)")


def train_arm(name: str):
    config, batch = built_in()
    model, optimizers = trained(config)
    if name.startswith("transformers"):
        image = int(batch["ids"][batch["role"] == 2][0])
        model, inputs = theirs(config, image), their_batch(config, batch, image)
    fused = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, fused=True)
    if name.startswith("ours"):
        return step_of(model, optimizers if "Muon" in name else [fused], batch, "mma")

    def their_step():
        with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        fused.step()
        fused.zero_grad()
    return their_step


def peak_of(name: str, out) -> None:
    """Peak memory in MiB of three steps, in a process of its own: of the GPU, or of the whole process."""
    step, status = train_arm(name), Path("/proc/self/status")
    for _ in range(3):
        step()
    if CUDA:
        out.put(torch.cuda.max_memory_allocated() / 2**20)
    else:  # getrusage's would begin at what the parent held
        held = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")] if status.exists() else []
        out.put(int(held[0]) / 1024 if held else float("nan"))


def train_step(args) -> list[list[str]]:
    t, rows = turns({name: train_arm(name) for name in STEPS}, args.repeats), len(built_in()[1]["ids"])
    table = [["step", "rows a second", "of transformers", "peak memory, MiB"]]
    context = multiprocessing.get_context("spawn")
    for arm, seconds in t.items():
        queue = context.Queue()
        process = context.Process(target=peak_of, args=(arm, queue))
        process.start()
        peak = queue.get()
        process.join()
        table.append([arm, f"{rows / seconds:.0f}", f"{t[STEPS[0]] / seconds:.2f}", f"{peak:.0f}"])
    return table


def generate(args) -> list[list[str]]:
    """Greedy; prompts of 5 to 60 tokens and a picture, answers of 1 to 64 tokens, each row ending at its own length."""
    import transformers as hf
    config = tiny()
    model, other = trained(config)[0].eval(), theirs(config, image=2).eval()
    table = [["batch", "ours: prefill, tokens/s", "decode", "theirs: prefill", "decode", "times as fast: prefill", "decode", "in all"]]
    for B in (1, 8, 64):
        r = random.Random(B)
        rows, lengths = rows_of(config, [(r.randint(5, 60), 0) for _ in range(B)]), [r.randint(1, 64) for _ in range(B)]
        batch = batch_of(config, rows)
        tokens, T = int((batch["role"] > 0).sum()), batch["ids"].shape[1]
        inputs = {name: x for name, x in their_batch(config, batch, image=2).items() if name != "labels"}
        left = [torch.arange(T, device=DEVICE).roll(T - len(row.ids)) for row in rows]  # transformers decodes prompts padded on the left
        inputs |= {name: torch.stack([x[i] for x, i in zip(inputs[name], left)]) for name in ("input_ids", "attention_mask")}

        def they(n):
            class Enough(hf.StoppingCriteria):
                def __call__(self, ids, scores, **kwargs):
                    return torch.tensor([ids.shape[1] - T >= some for some in n], device=DEVICE)
            other.generate(**inputs, max_new_tokens=max(n), do_sample=False, stopping_criteria=hf.StoppingCriteriaList([Enough()]))

        t = turns({"we, 1": lambda: model.generate(**batch, eos=-1, max_new_tokens=[1] * B), "they, 1": lambda: they([1] * B),
                   "we": lambda: model.generate(**batch, eos=-1, max_new_tokens=lengths), "they": lambda: they(lengths)}, args.repeats)
        new = sum(lengths) - B
        speed = [tokens / t["we, 1"], new / (t["we"] - t["we, 1"]), tokens / t["they, 1"], new / (t["they"] - t["they, 1"])]
        table.append([str(B), *(f"{s:,.0f}" for s in speed), f"{speed[0] / speed[2]:.1f}", f"{speed[1] / speed[3]:.1f}",
                      f"{t['they'] / t['we']:.1f}"])
    return table


def loader(args) -> list[list[str]]:
    config, batch = built_in()
    model, optimizers = trained(config)
    settings = train.arguments(["--preset", "tiny"])
    source = data.load("shapes")
    batches = train.Steps(source, data.Tokenizer.train(source.texts(), settings.vocab_size), config, "sft", settings)
    step = iter(range(10**6))
    t = turns({"making a batch (one process)": lambda: batches[next(step)], "a training step": step_of(model, optimizers, batch, "mma")},
              args.repeats)
    return [["what", "ms", "times as fast as training"],
            *([name, f"{1000 * seconds:.1f}", f"{t['a training step'] / seconds:.1f}"] for name, seconds in t.items())]


def accuracy(args) -> list[list[str]]:
    """Seeds one after the other, each stopped when validation has reached the target. Needs the machine to itself."""
    table, taken = [["seed", "step", "seconds"]], []
    for seed in range(3):
        with tempfile.TemporaryDirectory() as out:
            began = time.perf_counter()
            process = subprocess.Popen([sys.executable, "train.py", "--seed", str(seed), "--out", out], cwd=Path(__file__).parent)
            reached = None
            while reached is None and process.poll() is None:
                time.sleep(0.2)
                curve = evaluation.curve(out) if (Path(out) / "metrics.jsonl").exists() else {}
                reached = next((step for step, value in curve.items() if value >= args.target), None)
            seconds = time.perf_counter() - began
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait()
        table.append([str(seed), f"{reached or 'never':,}" if reached else "never", f"{seconds:.0f}"])
        taken += [seconds] if reached else []
    return table + [["mean", "", evaluation.spread(taken, "{:.0f}") if len(taken) == 3 else f"{3 - len(taken)} of 3 never"]]


def flops(config: Config, rows: int, T: int, answers: int) -> float:
    """Model FLOPs of a training step, one picture a row, the encoder frozen: 2 for each weight and token and 4 T D of attention for
    each layer and token (the mask is not counted off), three times for what is trained; checkpointing's second forward not counted."""
    D, E, d, P = config.d_model, config.encoder_width, config.d_model // config.n_head, config.patches ** 2
    layer = D * d * (2 * config.n_head + 2 * config.n_kv_head) + 3 * D * config.d_ff
    encoder = 4 * E * E + 2 * E * (config.encoder_d_ff or 4 * E)
    return (6 * rows * (T * config.n_layer * (layer + 2 * T * D) + answers * D * config.vocab_size + config.n_image_tokens * D * (E + D))
            + 2 * rows * P * (config.encoder_layers * (encoder + 2 * P * E) + 3 * config.patch_size ** 2 * E))


def plan(config: Config, rows: int, T: int, frozen: tuple = ("encoder",), optimizer: str = "muon", processes: int = 1) -> dict[str, float]:
    """What a training step of train.py holds on each GPU, in bytes: float32 weights, gradients and moments (AdamW two, Muon one), with
    --fsdp of several processes a part of each and what is gathered meanwhile; of each layer its input and of one layer everything
    (checkpointing); one chunk of logits. rows: a process's. And the numbers of parameters."""
    with torch.device("meta"):
        model = MLLM(config)
    n = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    total, of_layer = sum(n.values()), n["blocks"] // config.n_layer
    taught = {name: x for name, x in n.items() if name not in frozen}
    two = sum(taught.values()) if optimizer == "adamw" else taught.get("embed", 0) + taught.get("unembed", 0)
    gathered = total - n["blocks"] - n["encoder"] + 2 * of_layer if processes > 1 else 0  # all but the layers, and two of them
    tokens, D = rows * T, config.d_model
    return {"weights": 4 * total / processes, "gradients": 4 * sum(taught.values()) / processes,
            "moments": 4 * (sum(taught.values()) + two) / processes, "gathered weights": 4 * gathered,
            "inputs of the layers": 4 * config.n_layer * tokens * D, "one layer": tokens * (4 * 8 * D + 2 * 6 * config.d_ff) + 2 * of_layer,
            "a chunk of logits": 3 * 4 * model.chunk * config.vocab_size, "parameters": total,
            **{f"{name} parameters": x for name, x in n.items()}}


def size(args, rows: int = 32, question: int = 60, answer: int = 120) -> list[list[str]]:
    preset, llm = train.PRESETS["paper"], ("encoder", "embed", "blocks", "norm", "unembed")
    config = Config(vocab_size=32_064, **preset["own"], **preset["model"])
    T = 1 + config.n_image_tokens + question + answer
    arms = {"paper, Muon": dict(), "aki, stage 1": dict(frozen=llm, optimizer="adamw"), "aki, stage 2": dict(optimizer="adamw"),
            "aki, stage 2, each of 8 GPUs (--fsdp)": dict(optimizer="adamw", processes=8)}
    held = {name: plan(config, rows // arm.get("processes", 1), T, **arm) for name, arm in arms.items()}
    table, first = [[f"{rows} rows of {T} tokens", *arms]], held["paper, Muon"]
    table += [[name, *[f"{first[name] / 1e6:,.1f} M"] * len(arms)] for name in first if name.endswith("parameters")]
    planned = {arm: {name: x for name, x in of.items() if not name.endswith("parameters")} for arm, of in held.items()}
    planned = {arm: {**of, "in all": sum(of.values())} for arm, of in planned.items()}
    table += [[f"planned: {name}, GiB", *(f"{of[name] / 2**30:.1f}" for of in planned.values())] for name in planned["paper, Muon"]]
    # what is frozen needs no gradient of its weights: 4 instead of 6 for each
    step = [flops(config, rows, T, answer) * (2 / 3 if arm.get("frozen") else 1) for arm in arms.values()]
    table.append(["model FLOPs of a step", *(f"{x / 1e12:,.0f} T" for x in step)])
    steps = [0, train.PRESETS["aki"]["own"]["pt_steps"]] + 2 * [train.PRESETS["aki"]["own"]["steps"]]
    hours = [n * x / (0.4 * args.peak * 1e12 * arm.get("processes", 1)) / 3600 for n, x, arm in zip(steps, step, arms.values())]
    table.append([f"guess: hours, at 40 % of {args.peak:.0f} TFLOPS", *(f"{h:.1f}" if h else "-" for h in hours)])
    if CUDA:
        model, optimizers = trained(config)
        model.checkpointing, batch = True, batch_of(config, rows_of(config, [(question, answer)] * rows))
        t = turns({kind: step_of(model, optimizers, batch, kind) for kind in ("causal", "mma")}, args.repeats)
        for kind, seconds in t.items():
            used = flops(config, rows, T, answer) / seconds / args.peak / 1e12
            table.append([f"measured: {kind}", f"{rows / seconds:.1f} rows a second, {used:.1%} of {args.peak:.0f} TFLOPS", "", "", ""])
        table.append(["measured: peak memory, GiB", f"{torch.cuda.max_memory_allocated() / 2**30:.1f}", "", "", ""])
    return table


def code(args) -> list[list[str]]:
    root, table = Path(__file__).parent, []
    for pattern in ("*.py", "data/*.py", "tests/*.py"):
        for file in sorted(root.glob(pattern)):
            table.append([file.relative_to(root).as_posix(), str(len(file.read_text(encoding="utf-8").splitlines()))])
    tests = [int(lines) for name, lines in table if name.startswith("tests/")]
    return [*(row for row in table if not row[0].startswith("tests/")), [f"tests/ ({len(tests)} files)", str(sum(tests))]]


def report(record: dict) -> str:
    """The Markdown of a topic's JSON."""
    if record["topic"] == "code":
        return "Lines: " + ", ".join(f"{name} {int(lines):,}" for name, lines in record["table"]) + "."
    medians = "" if record["topic"] in ("accuracy", "size") else f"; medians of {record['repeats']}, the arms taking turns"
    return f"{evaluation.markdown(record['table'])}\n\n{record['where']}{medians}."


TOPICS = {"mask": mask, "packing": packing, "train": train_step, "generate": generate, "loader": loader, "size": size,
          "code": code, "accuracy": accuracy}


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topic", choices=TOPICS)
    parser.add_argument("--repeats", type=int, default=9, help="timed calls of each arm (default: 9)")
    parser.add_argument("--target", type=float, default=0.8, help="accuracy: share of validation answers that are right (default: 0.8)")
    parser.add_argument("--peak", type=float, default=989, help="size: the GPU's dense bfloat16 TFLOPS (default: 989, an H100 SXM)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--md", type=Path, metavar="FILE", help="write the table here")
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    try:
        table = TOPICS[args.topic](args)
    except ImportError as error:
        raise SystemExit(f"error: {error}; this topic compares with transformers: pip install transformers") from None
    record = {"topic": args.topic, "where": WHERE, "repeats": args.repeats, "table": table}
    print(report(record))
    if args.md:
        args.md.write_text(report(record) + "\n", encoding="utf-8")
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
