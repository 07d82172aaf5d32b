"""bridge/hf.py: what each layer reads in every family, answers, and what is refused."""

import copy
import runpy
import sys

import pytest
import torch

hf = pytest.importorskip("transformers", "5.6")

from hf_reading import reads, wrong  # noqa: E402
from tiny_vlms import FAMILIES, PROMPTS, batch, build, labels_of, one_of  # noqa: E402

from bridge import hf as door  # noqa: E402
from bridge.hf import apply_mma, check_mma, remove_mma  # noqa: E402
from bridge.hf_roles import kinds, roles  # noqa: E402
from mma import EXTRA_PAIRS, QUESTION  # noqa: E402

KINDS = ("causal", "mma", "v2v", "f")
GREEDY = dict(max_new_tokens=5, do_sample=False)


def test_kinds_follow_from_the_rule(monkeypatch):
    """Of a fork's too: those that open pictures and questions to pictures, and nothing else."""
    monkeypatch.setitem(EXTRA_PAIRS, "of a fork", lambda q, k: EXTRA_PAIRS["v2v"](q, k))
    assert {*KINDS, "of a fork"} <= {*kinds()} and not {"prefix", "mutual", "leaky"} & {*kinds()}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_reads_what_the_mask_says(family):
    tiny = build(family)
    for kind in KINDS:
        tiny.apply(kind)
        for side in ("left", "right"):
            assert not wrong(tiny, kind, *batch(tiny, side=side)), (kind, side)


@pytest.mark.parametrize("family,implementation", [
    ("llava", "eager"), ("idefics3", "eager"), ("gemma3", "eager"), ("gemma3", "flex_attention"),
])  # fmt: skip
def test_other_implementations(family, implementation):
    tiny, stance = build(family), "default"
    tiny.model.set_attn_implementation(implementation)
    tiny.apply()
    if implementation == "flex_attention":
        stance = "force_eager"  # compiling it takes a minute
    if implementation == "eager":  # which alone says how much each token reads
        inputs, _, _ = batch(tiny)
        attentions = tiny.model(**inputs, output_attentions=True).attentions
        assert attentions[-1].shape[-1] == inputs["input_ids"].shape[1]
    with torch.compiler.set_stance(stance):
        assert not wrong(tiny, "mma", *batch(tiny, side="left"), torch.float32)


def test_packed_documents_stay_apart():
    """Two documents in a row, told apart by positions that begin anew. If the first has lost the
    header of its answer, the second one's does not stand in for it."""
    tiny = build().apply()
    inputs, _, _ = batch(tiny, ["BUVqqHaeBUVqqHa"])
    ids = inputs["input_ids"][0]
    n = int((ids == ids[0]).nonzero()[1])
    column = torch.arange(len(ids))
    inputs |= dict(position_ids=torch.where(column < n, column, column - n)[None])
    del inputs["attention_mask"]
    found = reads(tiny.model, inputs)[0][0]
    assert not found[:n, n:].any() and not found[n:, :n].any()
    assert found[3, n - 4]  # a picture reads the last token before its answer
    ids[n - 4] = 30
    with pytest.raises(ValueError, match="row 0, token 2: no answer header"):
        tiny.model(**inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_batches_answer_as_single_prompts(family):
    tiny = build(family).apply()
    inputs, _, _ = batch(tiny, PROMPTS, "left")
    options = dict(**GREEDY, output_logits=True, return_dict_in_generate=True)
    together = tiny.model.generate(**inputs, **options)
    for row in range(len(PROMPTS)):
        alone = one_of(inputs, row, PROMPTS)
        single = tiny.model.generate(**alone, **options)
        said = single.sequences[0, alone["input_ids"].shape[1] :]
        n = len(said)
        assert torch.equal(together.sequences[row, inputs["input_ids"].shape[1] :][:n], said)
        for a, b in zip(together.logits[:n], single.logits):
            assert torch.allclose(a[row], b[0], atol=2e-4)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_every_way_of_decoding_agrees(family):
    """No cache, prompt lookup and an assistant give the greedy answer; beams of a ragged batch are
    those of single prompts; mma and causal differ, so that the test has power."""
    tiny = build(family).apply()
    inputs, _, _ = batch(tiny, PROMPTS, "left")
    alone = one_of(inputs, 1, PROMPTS)
    answer = lambda **more: tiny.model.generate(**alone, **GREEDY, **more).tolist()
    greedy = answer()
    assert answer(use_cache=False) == greedy
    assert answer(prompt_lookup_num_tokens=2) == greedy
    assistant = remove_mma(copy.deepcopy(tiny.model))  # Gemma's gets no token_type_ids
    assert answer(assistant_model=assistant) == greedy
    beams = tiny.model.generate(**inputs, **GREEDY, num_beams=3)
    one = tiny.model.generate(**alone, **GREEDY, num_beams=3)[0]
    assert one.tolist() == beams[1, -len(one) :].tolist()
    mma = tiny.model(**alone).logits
    tiny.apply("causal")
    assert (tiny.model(**alone).logits - mma).abs().max() > 0.1


def test_a_chat_goes_on_over_its_cache():
    tiny = build().apply()
    inputs, _, _ = batch(tiny, ["BUVqHaaeUVqqHae"])
    ids, mask, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
    n = int((ids[0] == 2).nonzero()[0]) + 1  # behind the first answer
    cache = tiny.model(ids[:, :n], pixels[:1], attention_mask=mask[:, :n]).past_key_values
    later = tiny.model(ids[:, n:], pixels[1:], attention_mask=mask, past_key_values=cache)
    assert torch.allclose(later.logits, tiny.model(**inputs).logits[:, n:], atol=1e-4)


def test_the_check_measures_and_leaves_the_model_as_it_was():
    tiny = build().apply()
    inputs, role, _ = batch(tiny)
    tiny.model.train()
    assert check_mma(tiny.model, {**inputs, "labels": labels_of(inputs["input_ids"], role)}) > 0.01
    assert tiny.model.training
    for kind in ("causal", "v2v"):
        tiny.apply(kind)
        assert check_mma(tiny.model, inputs) == 0
    plain = build().model(**inputs).logits
    remove_mma(tiny.model).eval()
    assert torch.equal(tiny.model(**inputs).logits, plain)
    assert type(tiny.model) is hf.LlavaForConditionalGeneration
    assert type(tiny.model.model) is hf.LlavaModel
    with pytest.raises(ValueError, match="no question after a picture"):
        check_mma(tiny.apply().model, batch(tiny, ["BUttHa"])[0])


@pytest.mark.parametrize("kind,opened", [("mma", "causal"), ("v2v", "mma"), ("mma", "leaky")])
def test_the_check_notices_another_mask(kind, opened, monkeypatch):
    """Nothing is opened, another kind's pairs are, or answers."""
    tiny = build().apply(kind)

    def read(**given):
        call = roles(**given)
        if opened == "leaky":
            call.cut.zero_()
        return call

    monkeypatch.setattr(door, "EXTRA_PAIRS", {**EXTRA_PAIRS, kind: EXTRA_PAIRS[opened]})
    monkeypatch.setattr(door, "roles", read)
    with pytest.raises(RuntimeError, match=f"the mask '{kind}' is not in force"):
        check_mma(tiny.model, batch(tiny)[0])


def test_the_inner_model_by_itself_reads_the_same():
    """trl's SFTTrainer calls it, to compute the loss by itself."""
    tiny = build().apply()
    inputs, _, _ = batch(tiny)
    states = tiny.model(**inputs, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(tiny.model.model(**inputs).last_hidden_state, states)


# --- What is refused


def test_a_label_that_a_picture_reads_is_refused(monkeypatch):
    tiny = build().apply()
    inputs, role, _ = batch(tiny)
    good = labels_of(inputs["input_ids"], role)
    assert torch.isfinite(tiny.model(**inputs, labels=good).loss)
    bad = good.clone()
    t = int((role[1] == QUESTION).nonzero()[-1])  # the header of the second answer
    bad[1, t] = inputs["input_ids"][1, t]
    with pytest.raises(ValueError, match=rf"row 1, token {t}: a picture reads this token"):
        tiny.model(**inputs, labels=bad)
    with pytest.raises(ValueError, match="a picture reads this token"):  # as peft before 0.20
        tiny.model.forward(**inputs, labels=bad)
    with monkeypatch.context() as patch:  # as trl's SFTTrainer does
        patch.setattr(tiny.model, "forward", lambda **inputs: None)
        with pytest.raises(ValueError, match=rf"row 1, token {t}: a picture reads this token"):
            tiny.model(**inputs, labels=bad)
    tiny.apply("v2v")
    tiny.model(**inputs, labels=bad)  # there no picture reads it


def test_inputs_that_are_refused():
    tiny = build().apply()
    inputs, _, _ = batch(tiny, PROMPTS, "left")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    short = dict(input_ids=ids[:, :-1], attention_mask=mask[:, :-1])
    embeds = tiny.model.get_input_embeddings()(ids)
    for change, error in (
        (short, "row 0, token .*: no answer header follows"),
        (dict(attention_mask=mask[:, None, None].bool()), r"attention_mask must be \[B, T\]"),
        (dict(input_ids=None, inputs_embeds=embeds), "input_ids, which are missing"),
    ):
        with pytest.raises(ValueError, match=error):
            tiny.model(**{**inputs, **change})


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_token_types_that_are_left_out_are_missed(family):
    tiny = build(family).apply()
    inputs, _, _ = batch(tiny)
    del inputs[tiny.types]
    with pytest.raises(ValueError, match=f"{tiny.types} is missing"):
        tiny.model(**inputs)


def test_masks_without_roles_are_refused(monkeypatch):
    tiny = build().apply()
    inputs, _, _ = batch(tiny, PROMPTS, "left")
    with pytest.raises(RuntimeError, match="knows no roles here"):
        tiny.model.get_decoder()(inputs["input_ids"])
    with pytest.raises(RuntimeError, match="knows no roles here"):
        tiny.model.generate(**inputs, **GREEDY, cache_implementation="static")
    with monkeypatch.context() as patch:  # half a registration
        patch.delitem(door.AttentionMaskInterface._global_mapping, "mma_sdpa")
        with pytest.raises(RuntimeError, match="not in force"):
            tiny.model(**inputs)
    tiny.model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="not in force"):
        tiny.model(**inputs)


def flash():
    model = build().model
    model.config.text_config._attn_implementation_internal = "flash_attention_2"
    return model


def text_model():
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    return hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=20, **sizes))


@pytest.mark.parametrize("make,options,error", [
    (lambda: build().model, dict(kind="prefix"), "no mask 'prefix'"),
    (lambda: build("paligemma").model, {}, "reads its whole prompt both ways"),
    (flash, {}, "flash_attention_2 takes no mask"),
    (text_model, {}, "no image tokens"),
    (lambda: torch.nn.Linear(1, 1), {}, "Linear is no model of transformers"),
    (lambda: build().model, dict(answer_header=None, processor=hf.CLIPImageProcessor()),
     "CLIPImageProcessor has no chat template"),
])  # fmt: skip
def test_models_that_are_refused(make, options, error):
    with pytest.raises(ValueError, match=error) as caught:
        apply_mma(make(), **{"answer_header": [7], **options})
    assert "\n" not in str(caught.value)


def test_transformers_missing_or_too_old(monkeypatch):
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "5.5.4")
    with pytest.raises(ImportError, match=r"needs transformers 5.6 or later.*5\.5\.4"):
        runpy.run_path(door.__file__)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install 'transformers>=5.6'"):
        runpy.run_path(door.__file__)
