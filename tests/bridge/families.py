"""Small byte-level tokenizers of three families, trained here, with the families' special tokens,
split patterns and chat templates (less the branches for tools), as their repositories have them."""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as pre
from tokenizers.trainers import BpeTrainer

WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
SPACE = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MESSAGES = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADER = (
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
    "+ '<|eot_id|>'"
)
LLAMA3_OPENING = (
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SMOL_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def chatml_system(text: str) -> str:
    return f"<|im_start|>system\n{text}<|im_end|>\n"


# family -> our template, theirs, and the block that theirs begins with where no system is given
FAMILIES = {
    "smollm2": (
        "chatml",
        "{% if messages[0]['role'] != 'system' %}{{ '" + chatml_system(SMOL_SYSTEM) + "' }}"
        "{% endif %}" + MESSAGES,
        chatml_system(SMOL_SYSTEM),
    ),
    "qwen2.5": (
        "chatml",
        "{%- if messages[0]['role'] != 'system' %}\n    {{- '" + chatml_system(QWEN_SYSTEM) + "' }}"
        "\n{%- endif %}\n"
        "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\n' + "
        "message.content + '<|im_end|>' + '\n' }}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\n' }}\n{%- endif %}\n",
        chatml_system(QWEN_SYSTEM),
    ),
    "qwen3": ("chatml", MESSAGES, ""),
    "llama-3": (
        "llama-3",
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = " + HEADER + " %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
        "{% endfor %}" + LLAMA3_OPENING,
        "",
    ),
    "llama-3.1": (
        "llama-3",
        "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
        "{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}"
        "{%- else %}{%- set system_message = '' %}{%- endif %}"
        "{{- '<|start_header_id|>system<|end_header_id|>\n\n" + DATES + "' }}"
        "{{- system_message }}{{- '<|eot_id|>' }}"
        "{%- for message in messages %}{{- " + HEADER + " }}{%- endfor %}" + LLAMA3_OPENING,
        f"<|start_header_id|>system<|end_header_id|>\n\n{DATES}<|eot_id|>",
    ),
}

LEARNED_FROM = [
    "which colour is this? it is red. it is green.\n\nUSER user assistant system\n",
    "def f(x):\n    return x + 1\n\n\nfor i in range(10):\n        print(i)\n\tpass\r\n",
    "  two spaces,   three,    four\n  \n \n\n   café naïve 色は？ 12 345 2023",
] * 4


def bpe_of(family: str) -> Tokenizer:
    """Of a family's kind; its special tokens first, as SmolLM2's, or behind the others."""
    chatml = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    smol, llama = family == "smollm2", family.startswith("llama")
    tokenizer = Tokenizer(models.BPE(ignore_merges=llama))
    if smol:
        tokenizer.pre_tokenizer = pre.Sequence(
            [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
        )
    else:
        digits = "{1,3}" if llama else ""
        tokenizer.pre_tokenizer = pre.Sequence([
            pre.Split(Regex(WORD + digits + SPACE), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
        tokenizer.normalizer = None if llama else normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=420, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False,
        special_tokens=chatml if smol else [],
    )  # fmt: skip
    tokenizer.train_from_iterator(LEARNED_FROM, trainer)
    if llama:
        names = ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id")
        tokenizer.add_special_tokens([f"<|{name}|>" for name in names])
        bos = "<|begin_of_text|>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    elif not smol:
        tokenizer.add_special_tokens(chatml)
        tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return tokenizer


def write_folder(folder, family: str, more: int = 3) -> None:
    """tokenizer.json and a config.json whose vocabulary has some more, unused tokens, as Qwen's."""
    tokenizer = bpe_of(family)
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size(with_added_tokens=True) + more
    (folder / "config.json").write_text(json.dumps({"vocab_size": size}))
