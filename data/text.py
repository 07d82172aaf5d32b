"""Text that people and models write in several ways."""

import unicodedata

OTHER_FORMS = {  # of a mark of punctuation, in other fonts and scripts
    '"': "“”„‟«»″＂", "'": "‘’‚‛‹›′＇ʼ", ".": "．。", ",": "，、", ":": "：", ";": "；",
    "!": "！", "?": "？", "(": "（", ")": "）", "...": "…",
}  # fmt: skip
TO_ASCII = {ord(form): mark for mark, forms in OTHER_FORMS.items() for form in forms}


def fold(text: str) -> str:
    """The text in lower case, with its punctuation in ASCII, and é one letter where it was written
    as two: texts that differ in nothing else are then equal. m² and m2 are not."""
    return unicodedata.normalize("NFC", text.lower()).translate(TO_ASCII)
