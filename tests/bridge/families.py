"""Small tokenizers of families, trained here, with the families' special tokens, split patterns and
chat templates (less the branches for tools), as their repositories have them: byte-level, and of
sentencepiece's kind."""

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
SMOL_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
SPEAKERS = "{% for m in messages %}{% if m.role == 'user' %}"
FAMILIES = {
    "smollm2": "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SMOL_SYSTEM + "<|im_end|>\n' }}"
    "{% endif %}" + MESSAGES,
    "qwen3": MESSAGES,
    "llama-3.1": "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
    "{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n" + DATES + "' }}"
    "{{- system_message }}{{- '<|eot_id|>' }}"
    "{%- for message in messages %}{{- " + HEADER + " }}{%- endfor %}" + LLAMA3_OPENING,
    "llama-2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "vicuna": "{{ bos_token }}A chat. " + SPEAKERS + "USER: {{ m.content }} "
    "{% elif m.role == 'assistant' %}ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "phi-3": SPEAKERS + "{{'<|user|>\n' + m.content + '<|end|>\n'}}"
    "{% elif m.role == 'assistant' %}"
    "{{'<|assistant|>\n' + m.content + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
}  # fmt: skip
PIECES = ("llama-2", "vicuna", "phi-3")  # as sentencepiece writes them

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
    words = Regex(WORD + ("{1,3}" if llama else "") + SPACE)
    split = pre.Digits(individual_digits=True) if smol else pre.Split(words, "isolated")
    letters = pre.ByteLevel(add_prefix_space=False, use_regex=smol)
    tokenizer.pre_tokenizer = pre.Sequence([split, letters])
    tokenizer.normalizer = None if smol or llama else normalizers.NFC()
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


def pieces_of(family: str) -> Tokenizer:
    """As Llama-2's tokenizer.json: a space is a letter, one stands before every text, and bytes
    stand in for what no piece has."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "\u2581")
    words = [f" {word}" for text in LEARNED_FROM for word in text.split()]
    learner.train_from_iterator(words, BpeTrainer(vocab_size=200, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    known = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    known += sorted(learned["vocab"], key=learned["vocab"].get)
    vocab, merges = {text: i for i, text in enumerate(known)}, map(tuple, learned["merges"])
    model = models.BPE(vocab, list(merges), unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    tokenizer.add_special_tokens(known[:3])
    if family == "phi-3":
        names = ("<|user|>", "<|assistant|>", "<|end|>")
        tokenizer.add_special_tokens([AddedToken(name, rstrip=True) for name in names])
    return tokenizer


def write_folder(folder, family: str) -> int:
    """A folder's tokenizer, and a config.json whose vocabulary has three more, unused tokens, as
    Qwen's; returns its size."""
    tokenizer = pieces_of(family) if family in PIECES else bpe_of(family)
    tokenizer.save(str(folder / "tokenizer.json"))
    bos = "<s>" if family in PIECES else "<|begin_of_text|>" if family[:5] == "llama" else None
    eos = {"vicuna": "</s>", "llama-2": "</s>", "phi-3": "<|end|>"}
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token=bos)
    settings["eos_token"] = eos.get(family, "<|eot_id|>" if bos else "<|im_end|>")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(FAMILIES[family])
    size = tokenizer.get_vocab_size(with_added_tokens=True) + 3
    (folder / "config.json").write_text(json.dumps({"vocab_size": size, "model_type": "llama"}))
    return size
