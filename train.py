"""Train a small multimodal LLM from nothing, in the paper's two stages, and see how it answers.

    python train.py                                                the built-in world of shapes
    python train.py --mask causal                                  the same without MMA
    python train.py --data nlvr --source PATH                      NLVR, or easy_vqa, as published
    python train.py --data llava --source FILE.json --images DIR   your own pictures and dialogues

Stage 1 (PT): captions under the causal mask, everything trainable. (The paper starts from a
pretrained vision encoder and LLM; ours start from nothing. bridge/finetune.py starts from theirs.)
Stage 2 (SFT): questions and answers under --mask; the vision encoder is frozen, as in the paper,
but not with --data nlvr+world, where it goes on learning; --freeze says otherwise.
Data without captions use questions and answers in stage 1 too.

Written to --out: model.pt, tokenizer.model, run.json, metrics.jsonl; curves.png, if matplotlib is
installed; sheet.png, test answers; example.png (and example.wav), to ask about.
"""

import engine.terminal  # noqa: F401 - first: then Ctrl-C while torch loads is no traceback

from functools import cache, partial

import torch

import data
from engine.answering import say_unread
from engine.batches import StepBatches, check_source, loader_of, measure_pixels
from engine.checkpoint import StopRequest, fingerprint
from engine.distributed import Distributed, full_tensor
from engine.lock import run_lock
from engine.optimizers import freeze, make_optimizers
from engine.options import PRESETS, arguments
from engine.precision import autocast_of, check_device, scaler_of, uncompiled, wrap_blocks
from engine.run import Run, check_out, one_line_errors
from engine.tables import pool, table
from eval import answer_all, summarise
from model import MLLM, Config


def schedule(step: int, steps: int, warmup: int = 30, decay: float = 0.4) -> float:
    """Share of the learning rate at a step, counted from 0: linear warm-up, constant, linear decay
    to zero over the last part."""
    return min(1.0, (step + 1) / warmup, (steps - step) / max(1.0, decay * steps))


def train_stage(
    model, loss_function, optimizers, scaler, batches, first_step, steps, kind, record,
    schedule=schedule,
):  # fmt: skip
    """One stage. batches: those of the steps from first_step on, on the model's device. kind: the
    mask. record(step, loss, norm): called after each step, counted from 1."""
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    for step, batch in enumerate(batches, first_step):
        for optimizer, peak in zip(optimizers, peaks):
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule(step, steps)

        loss = loss_function(**batch, kind=kind)
        scaler.scale(loss).backward()

        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        # float16 alone: a step whose gradients overflow is left out
        overflow = scaler.is_enabled() and not torch.isfinite(norm)
        for optimizer in optimizers:
            if not overflow:
                scaler.step(optimizer)
        scaler.update()
        model.zero_grad()
        record(step + 1, loss, torch.zeros_like(norm) if overflow else norm)


def prepare(model: MLLM, source, stages: list, args, ranks: Distributed) -> MLLM:
    """Check what can be checked before training; the model, wrapped for the processes there are."""
    freeze(model, args.pt_freeze, "--pt-freeze")  # an unknown part fails here, not later
    freeze(model, args.freeze)
    check_source(source, stages, model, args, ranks.say)
    params = sum(p.numel() for p in model.parameters())
    ranks.say(f"{args.out}: mask {args.mask}, {params:,} parameters, on {args.device}")
    measure_pixels(model.encoder, stages[0][2])
    wrap_blocks(model, args)
    return ranks.place(model)


def fit(model: MLLM, tokenizer, source, args, watch=None, schedule=schedule) -> None:
    """Train a model on a data set in two stages and write the run's folder. args: as
    engine.options.arguments makes them; watch: what draws curves.png and sheet.png (lab/watch.py).
    Raises data.DataError where the data or the folder do not allow it."""
    ranks = Distributed(args.device, args.fsdp)
    stages = [
        (stage, kind, StepBatches(source, tokenizer, model.config, stage, args))
        for stage, kind in (("pt", args.pt_mask), ("sft", args.mask))
    ]
    model = prepare(model, source, stages, args, ranks)
    say_once = cache(ranks.say)  # not at every validation

    def answer(examples: list, progress: bool = False) -> list[dict]:
        shard = ranks.local_shard(examples)
        with uncompiled(args.compile):
            results = answer_all(model, tokenizer, shard, source.answers, progress=progress)
        results = ranks.gather_list(results)
        say_unread(results, say_once, args.strict)
        return results

    first_rows = [row for *_, batches in stages for row in batches.rows(0)]
    run = Run(args, ranks, tokenizer, fingerprint(source, tokenizer, first_rows))
    run.watch_by(watch, source.heldout("val", args.val_limit), lambda e: summarise(answer(e)))
    scaler, cast = scaler_of(args), autocast_of(args)
    with StopRequest(patient=ranks.world_size > 1) as stop:
        for stage, kind, batches in run.to_do(stages):
            freeze(model, args.pt_freeze if stage == "pt" else args.freeze)
            optimizers, loss = make_optimizers(model, args, stage), cast(ranks.loss_function(model))
            first_step = run.begin_stage(stage, model, optimizers, scaler, batches)
            loaded = run.progress(loader_of(batches, first_step, args), first_step)
            train_stage(model, loss, optimizers, scaler, loaded, first_step, len(batches), kind,
                        partial(run.record, stop), schedule)  # fmt: skip

    run.save_model(model)
    results = answer(source.heldout(source.final_split, args.limit), progress=ranks.is_main)
    if watch and (ranks.is_main or ranks.sharded):
        watch.write_sheet(args.out, model, tokenizer, results, ranks.is_main, source)
    if ranks.is_main:
        record = run.finish(summarise(results))
        print(f"\nHeld-out answers, after {record['seconds']:.0f} seconds:")
        print(table(pool([record])))
        file = "--audio FILE" if args.data in data.AUDIO_WORLDS else "--image FILE"
        if args.data not in data.TEXT_WORLDS:
            print(f'Ask it: python eval.py {args.out} {file} --question "..."')
    ranks.end()


def main(argv=None) -> None:
    args = arguments(argv, __doc__)
    with one_line_errors(args.out), run_lock(args.out):
        check_out(args)
        check_device(args.device)
        from lab import variants, watch  # the one look upwards: other methods, and drawing

        variant = variants.get(args)
        torch.manual_seed(args.seed)
        source = data.load(
            args.data, args.source, args.images, args.strict, args.pt_source, args.pt_images,
            args.scenes,
        )  # fmt: skip
        source = variant.wrap_source(source, args)
        tokenizer = variant.tokenizer_class.train(source.texts(), args.vocab_size)
        sizes = {**PRESETS[args.preset]["model"], "n_layer": args.n_layer, "mask": args.mask}
        sizes |= {"image_size": args.image_size, "patch_size": args.patch_size}
        try:
            config = Config(vocab_size=len(tokenizer), **sizes)
        except ValueError as error:
            raise data.DataError(str(error)) from None
        model = variant.model_class(config)
        fit(model, tokenizer, source, args, watch)


if __name__ == "__main__":
    main()
