"""bridge/hf.py beside what people train and save with, its reading of chat templates, and the same
model twice: as transformers computes it and as ours."""

import pytest
import torch
from families import FAMILIES as TOKENIZERS
from families import bpe_of

hf = pytest.importorskip("transformers", "5.6")

from tiny_vlms import (  # noqa: E402, I001
    DIALOGUES, HEADER, PROMPTS, SPECIAL, Tiny, batch, build, labels_of,
)  # fmt: skip

from bridge.hf import apply_mma, check_mma  # noqa: E402
from bridge.hf_roles import header_of  # noqa: E402
from bridge.pretrained import load  # noqa: E402
from mma import PAD  # noqa: E402


def gradients(model, inputs, labels) -> dict:
    model.zero_grad()
    model(**inputs, labels=labels).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "idefics3"])
def test_gradients_with_and_without_checkpointing(family):
    tiny = build(family).apply()
    tiny.model.train()
    inputs, role, _ = batch(tiny)
    labels = labels_of(inputs["input_ids"], role)
    plain = gradients(tiny.model, inputs, labels)
    tiny.model.gradient_checkpointing_enable()
    again = gradients(tiny.model, inputs, labels)
    assert plain.keys() == again.keys() and len(plain) > 20
    for name, gradient in plain.items():
        assert torch.allclose(gradient, again[name], rtol=1e-4, atol=1e-6), name
    other = gradients(tiny.apply("causal").model, inputs, labels)
    assert any((gradient - other[name]).abs().max() > 1e-3 for name, gradient in plain.items())


@pytest.mark.parametrize("task", ["CAUSAL_LM", None])
def test_lora(task):
    """Around a model with the mask, or given the mask later. With a task peft before 0.20 calls
    forward, past all hooks; without one, the model."""
    peft = pytest.importorskip("peft")
    tiny = build()
    inputs, role, _ = batch(tiny)
    wanted = build().apply().model(**inputs).logits
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type=task)
    if task:
        model = peft.get_peft_model(tiny.apply().model, config)
    else:
        model = apply_mma(peft.get_peft_model(tiny.model, config), answer_header=HEADER)
    assert torch.allclose(model(**inputs).logits, wanted, atol=1e-5)  # LoRA begins at zero
    assert check_mma(model, inputs) > 0.01
    labels = labels_of(inputs["input_ids"], role)
    assert all("lora_" in name for name in gradients(model.train(), inputs, labels))
    with pytest.raises(ValueError, match="a picture reads this token"):
        model(**inputs, labels=inputs["input_ids"])
    merged = model.eval().merge_and_unload()
    assert torch.allclose(merged(**inputs).logits, wanted, atol=1e-5)


def test_saved_and_loaded_it_is_the_plain_model(tmp_path):
    tiny = build()
    inputs, _, _ = batch(tiny)
    plain = tiny.model(**inputs).logits
    mma = tiny.apply().model(**inputs).logits
    tiny.model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "mma" not in text and '"LlavaForConditionalGeneration"' in text
    loaded = hf.AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.allclose(loaded(**inputs).logits, plain, atol=1e-5)
    apply_mma(loaded, answer_header=HEADER)
    assert torch.allclose(loaded(**inputs).logits, mma, atol=1e-5)


# --- Answer headers

BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content[0].text }}"
    " [/INST]{% else %} {{ m.content[0].text }}</s>{% endif %}{% endfor %}"
)
THINK = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n"
    "</think>\n\n{% endif %}{{ m.content[0].text }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.mark.parametrize("template,wanted", [
    (TOKENIZERS["llama-3.1"], "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
    (BRACKETS, " [/INST]"), (THINK, "<|im_end|>\n<|im_start|>assistant\n<think>"), ("", None),
    ("{% for m in messages %}{{ m.content[0].text }}{% endfor %}", None),
])  # fmt: skip
def test_the_answer_header_is_the_templates(template, wanted):
    family = "llama-3.1" if wanted and "eot_id" in wanted else "qwen3"
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=bpe_of(family), chat_template=template, bos_token="[UNK]"
    )
    if wanted is None:
        with pytest.raises(ValueError, match="has no chat template|puts nothing before an answer"):
            header_of(tokenizer)
    else:
        assert tokenizer.decode(header_of(tokenizer)).rstrip("\n") == wanted.rstrip("\n")


# --- The same model twice


@pytest.fixture(scope="module")
def twice(vision, saved):
    """LLaVA of transformers and the same as bridge/pretrained reads it: SigLIP, projector, Llama.
    LLaVA takes the encoder's features before its last norm, so that ours goes without."""
    (eyes, tower), (folder, llama) = vision, saved("llama")
    ours = load(eyes, folder).eval()
    ours.encoder.norm = torch.nn.Identity()
    config = hf.LlavaConfig(
        vision_config=tower.config, text_config=llama.config, image_token_index=10,
        vision_feature_layer=-1, vision_feature_select_strategy="full", **SPECIAL,
    )  # fmt: skip
    theirs = hf.LlavaForConditionalGeneration(config).eval()
    theirs.model.vision_tower.load_state_dict(tower.state_dict())
    theirs.model.language_model.load_state_dict(llama.model.state_dict())
    theirs.lm_head.load_state_dict(llama.lm_head.state_dict())
    first, _, second = ours.projector
    theirs.model.multi_modal_projector.linear_1.load_state_dict(first.state_dict())
    theirs.model.multi_modal_projector.linear_2.load_state_dict(second.state_dict())
    g = torch.Generator().manual_seed(5)
    images = torch.randint(256, (6, 3, 33, 33), dtype=torch.uint8, generator=g)
    pictures = lambda k: dict(pixel_values=(images[:k] - 127.5) / 127.5)
    return ours, Tiny("llava", theirs, 16, pictures), images


def inputs_of_both(twice, dialogues, side):
    _, tiny, images = twice
    inputs, role, turn = batch(tiny, dialogues, side)
    inputs["input_ids"] -= 60 * (inputs["input_ids"] >= 90)  # the vocabulary
    k = sum(d.count("V") for d in dialogues)
    same = dict(ids=inputs["input_ids"], role=role, turn=turn)
    return inputs, dict(**same, images=images[:k], image_index=torch.arange(k))


@pytest.mark.parametrize("kind", ["mma", "causal", "v2v", "f"])
@torch.no_grad()
def test_the_same_model_twice(twice, kind):
    ours, tiny, _ = twice
    ours.config.mask = kind
    theirs = tiny.apply(kind).model
    for side in ("left", "right"):
        inputs, same = inputs_of_both(twice, DIALOGUES, side)
        real = same["role"] != PAD
        out = theirs(**inputs, labels=labels_of(same["ids"], same["role"]))
        assert (out.logits - ours.head(ours(**same)))[real].abs().max() < 1e-4
        causal = ours.head(ours(**same, mask="causal"))
        assert ((out.logits - causal)[real].abs().max() > 0.1) == (kind != "causal")
        assert abs(out.loss - ours.loss(**same)) < 1e-4
    options = dict(max_new_tokens=6, do_sample=False, eos_token_id=2, pad_token_id=0)
    left, _ = inputs_of_both(twice, PROMPTS, "left")
    _, right = inputs_of_both(twice, PROMPTS, "right")
    said = theirs.generate(**left, **options)[:, left["input_ids"].shape[1] :].tolist()
    mine = ours.generate(**right, eos=2, max_new_tokens=6)
    assert [row[: len(answer)] for row, answer in zip(said, mine)] == mine
