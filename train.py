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

from functools import cache

import torch

import data
from engine import wings
from engine.answering import answer_loss, are_free, mean_loss, say_unread
from engine.batches import StepBatches, loader_of, measure_pixels
from engine.checkpoint import StopRequest, fingerprint
from engine.distributed import Distributed, full_tensor, processes_of, share_gradients
from engine.optimizers import freeze, make_optimizers, set_rates
from engine.options import PRESETS, arguments
from engine.plan import check_source, not_asked, plan_of
from engine.precision import autocast_of, check_device, compile_blocks, scaler_of, uncompiled
from engine.run import Run, check_out, one_line_errors
from engine.tables import pool, table
from eval import answer_all, summarise
from model import MLLM, Config

CLIP = 1.0  # the norm of all gradients of a step, at most


def schedule(step: int, steps: int, warmup: int = 30, decay: float = 0.4) -> float:
    """Share of the learning rate at a step, counted from 0: linear warm-up, constant, linear decay
    to zero over the last part."""
    return min(1.0, (step + 1) / warmup, (steps - step) / max(1.0, decay * steps))


def forward_backward(loss_of, batches: list[dict], mask: str, autocast, scaler) -> torch.Tensor:
    """Add up the gradients of the batches of one step (--accumulate makes several); returns the
    sum of their losses."""
    total = 0
    for k, batch in enumerate(batches, 1):
        share_gradients(loss_of, k == len(batches))
        with autocast:
            loss = loss_of(**batch, mask=mask)  # MLLM.loss
        scaler.scale(loss).backward()
        total = total + loss.detach()
    return total


def clip_and_step(model, optimizers: list, scaler) -> torch.Tensor:
    """Clip the gradients, update the parameters; returns the norm that the gradients had."""
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = full_tensor(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP))
    # float16 alone: a step whose gradients overflow is left out
    overflow = scaler.is_enabled() and not torch.isfinite(norm)
    for optimizer in optimizers:
        if not overflow:
            scaler.step(optimizer)
    scaler.update()
    model.zero_grad()
    return torch.zeros_like(norm) if overflow else norm


def train_stage(model, batches: StepBatches, run: Run, args, scaler, validate, stop, schedule):
    """One stage: "pt" under --pt-mask, "sft" under the mask of the model. batches: of each step.
    validate(step): the summary of the answers to validation questions."""
    stage, steps, processes = batches.stage, len(batches), run.processes
    freeze(model, args.pt_freeze if stage == "pt" else args.freeze, steps=steps)
    optimizers, autocast = make_optimizers(model, args, stage), autocast_of(args)
    loss_of = processes.loss_function(model)  # model.loss; several processes share its gradients
    first_step = run.begin(stage, model, optimizers, scaler)
    loader = loader_of(batches, first_step, args)

    for step, parts in zip(run.bar(first_step, steps), loader):
        parts = run.on_device(parts)
        set_rates(optimizers, schedule(step, steps))
        mask = args.pt_mask if stage == "pt" else model.config.mask
        loss = forward_backward(loss_of, parts, mask, autocast, scaler)
        norm = clip_and_step(model, optimizers, scaler)

        run.note(loss, norm)
        done, last, stopping = step + 1, step + 1 == steps, processes.any_rank(stop.requested)
        validate_now = stage == "sft" and (last or done % args.eval_every == 0)
        write_now = last or validate_now or done % 10 == 0
        save_now = last or stopping or done % args.save_every == 0
        if write_now or save_now:
            mean_loss = processes.mean(loss)
            run.check(done, scaler, batches)
        if write_now:
            val = validate(done) if validate_now else None
            run.write(done, mean_loss, model, val, draw=last or validate_now)
        if save_now:
            run.save(done, model, optimizers, scaler)
        if stopping:
            run.shown_bar.close()
            raise KeyboardInterrupt


def best_by(source, args) -> str:
    """The measure by which --keep-best compares validations: the one that says most of answers such
    as these."""
    if args.keep_best is not True:
        return args.keep_best
    answers = [answer for e in source.heldout("val", args.val_limit) for _, answer in e.turns]
    return "loss" if are_free(answers, source.answers) else "accuracy"


def prepare(model: MLLM, source, whole: list[StepBatches], args, processes: Distributed) -> MLLM:
    """Check what can be checked before training; the model, placed on the processes there are."""
    freeze(model, args.pt_freeze, "--pt-freeze", args.pt_steps)  # what is wrong fails here
    freeze(model, args.freeze, "--freeze", args.steps)
    check_source(source, whole, {"pt": args.pt_mask, "sft": args.mask}, model, args, processes.say)
    processes.say(plan_of(whole, model, args))
    measure_pixels(model.encoder, whole[0])
    model.checkpointing = bool(args.checkpointing)
    if args.compile:
        compile_blocks(model)
    return processes.place(model)


def evaluate(model, tokenizer, source, examples: list, args, processes, say, progress=False):
    """The answers to held-out examples (eval.answer_all), put together from all processes, and what
    they come to (eval.summarise), with the loss of the true ones."""
    shard = processes.local_shard(examples)
    with uncompiled(args.compile):
        results = iter(answer_all(model, tokenizer, shard, source.answers, progress=progress))
        sums = answer_loss(model, tokenizer, shard)
    results = [[next(results) for _ in example.turns] for example in shard]
    results = [result for of_one in processes.gather_shards(results) for result in of_one]
    say_unread(results, say, args.strict)
    all_sums = [sums] if processes.sharded else processes.gather(sums)
    return results, {**summarise(results), **mean_loss(all_sums)}


def fit(model: MLLM, tokenizer, source, args, watch=None, schedule=schedule) -> None:
    """Train a model on a data set in two stages and write the run's folder. args: as
    engine.options.arguments makes them; watch: what draws curves.png and sheet.png (lab/watch.py).
    Raises data.DataError where the data or the folder do not allow it."""
    processes = processes_of(args)
    config, args.keep_best = model.config, best_by(source, args)
    whole = [StepBatches(source, tokenizer, config, stage, args) for stage in ("pt", "sft")]
    model = prepare(model, source, whole, args, processes)
    say = cache(processes.say)  # of unreadable pictures, once and not at every validation
    validation = source.heldout("val", args.val_limit)

    def answers_to(examples: list, step: int, progress: bool = False) -> tuple[list[dict], dict]:
        found = evaluate(model, tokenizer, source, examples, args, processes, say, progress)
        return found[0], {**found[1], "not_asked": not_asked(source, args, step)}

    def validate(step: int) -> dict | None:
        return answers_to(validation, step)[1] if validation else None

    first_rows = [row for batches in whole for row in batches.rows(0)]
    run = Run(args, processes, tokenizer, fingerprint(source, tokenizer, first_rows), watch)
    scaler, share = scaler_of(args), (processes.rank, processes.world_size, args.accumulate)
    with StopRequest(patient=processes.world_size > 1) as stop:
        for stage in run.to_do():
            batches = StepBatches(source, tokenizer, config, stage, args, *share)
            train_stage(model, batches, run, args, scaler, validate, stop, schedule)

    run.save_model(model)
    final = source.heldout(source.final_split, args.limit)
    results, summary = answers_to(final, args.steps, processes.is_main)
    if watch and (processes.is_main or processes.sharded):
        watch.write_sheet(args.out, model, tokenizer, results, processes.is_main, source)
    if processes.is_main:
        report(run.finish(summary), args, results, source.answers)
    processes.end()


def report(record: dict, args, results: list[dict], known) -> None:
    """What is printed at the end of a run; some of the results where answers are free text."""
    print(f"\nHeld-out answers, after {record['seconds']:.0f} seconds:")
    print(table(pool([record])))
    if are_free([result["answer"] for result in results], known):
        print("\n".join(beside_true(results)))
    if args.data not in data.TEXT_WORLDS:
        file = "--audio FILE" if args.data in data.AUDIO_WORLDS else "--image FILE"
        print(f'Ask it: python eval.py {args.out} {file} --question "..."')


def beside_true(results: list[dict]) -> list[str]:
    """Three lines, or as many as there are results: an answer and the true one, of either 60
    letters at most."""
    lines = []
    for result in results[:: max(1, len(results) // 3)][:3]:
        texts = (" ".join(result[name].split()) for name in ("given", "answer"))
        said, true = (text if len(text) <= 60 else f"{text[:56]} ..." for text in texts)
        lines.append(f"said {said!r}, where the true answer is {true!r}")
    return lines


def main(argv=None) -> None:
    args = arguments(argv, __doc__)
    with one_line_errors(args.out):
        check_out(args)
        check_device(args.device)
        variant = wings.get(args)
        torch.manual_seed(args.seed)
        source = data.load(args.data, **data.options_of(args))
        source = variant.wrap_source(source, args)
        tokenizer = variant.tokenizer_class.train(source.texts(), args.vocab_size)
        sizes = {**PRESETS[args.preset]["model"], "n_layer": args.n_layer, "mask": args.mask}
        sizes |= {"image_size": args.image_size, "patch_size": args.patch_size}
        try:
            config = Config(vocab_size=len(tokenizer), **sizes)
        except ValueError as error:
            raise data.DataError(str(error)) from None
        model = (variant.model_class or MLLM)(config)
        fit(model, tokenizer, source, args, wings.watch())


if __name__ == "__main__":
    main()
