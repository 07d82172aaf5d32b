"""Small benchmark tables and pictures for the tests."""

import base64
import io

from PIL import Image


def picture(colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (20, 12), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def tsv(path, rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    path.write_text("\n".join(map("\t".join, lines)) + "\n")
    return path
