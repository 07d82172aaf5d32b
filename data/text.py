"""Text that people and models write in several ways."""

import re
import unicodedata

OTHER_FORMS = {  # of a mark of punctuation, in other fonts and scripts
    '"': "“”„‟«»″「」『』", "'": "‘’‚‛‹›′ʼ", ".": "。", ",": "、—", "...": "…", "-": "‐‑–−",
    "": "\u00ad\u200b\u200e\u200f\u2060\ufeff",  # marks that are not seen
}  # fmt: skip
TO_ASCII = {ord(form): mark for mark, forms in OTHER_FORMS.items() for form in forms}
TO_ASCII |= {0xFF01 + k: 0x21 + k for k in range(94)}  # full-width, as in Chinese text: ５ ？ Ａ
OPENS = r"(?<![\w*])[*_`]+(?=[^\s*_`])"  # Markdown, before what is emphasised
CLOSES = r"(?<=[^\s*_`])[*_`]+(?![\w*])"
LEAD = r"(?:(?:the|my|final|correct|short) )*answer(?: is\b| ?:)[\s:]*(?=\S)"  # to an answer


def plain(text: str) -> str:
    """The text with its punctuation in ASCII, é one letter where it was written as two, and without
    Markdown's emphasis: texts that differ in nothing else are then equal. m² and m2 are not."""
    text = unicodedata.normalize("NFC", text).translate(TO_ASCII).strip()
    return re.sub(f"{OPENS}|{CLOSES}", "", text) if re.search(OPENS, text) else text


def normalise(answer: str) -> str:
    """Answers are compared in this form: plain, lower case, single spaces, no punctuation (signs,
    and points within numbers, stay), no articles, nothing like "The answer is" or "Answer:" before
    them; what is nothing but these stays as it is."""
    text = plain(answer.lower())
    said = re.sub(r"[.,;:!?'](?!\d)|(?<!\w)'|[\"()]", " ", re.sub(f"^{LEAD}", "", text))
    words = said.split()
    return " ".join([w for w in words if w not in ("a", "an", "the")] or words) or text
