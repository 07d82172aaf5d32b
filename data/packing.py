"""Dialogues of very different lengths, packed into fewer and fuller rows."""

from data.prompt import Row


def pack(rows: list[Row], enough: float = 0.85, aim: float = 0.95) -> list[Row]:
    """Fewer, fuller rows: dialogues one after the other, told apart by `document`. Nothing else
    changes: no dialogue is cut, none reads another, positions restart. Rows that padding to the
    longest fills to the share `enough` stay as they are. Packed rows are as short as they can be to
    be filled to `aim` (attention costs T^2): first fit, longest first."""
    longest = max(len(row.ids) for row in rows)
    tokens = sum(len(row.ids) for row in rows)
    best, filled = rows, tokens / (len(rows) * longest)
    if filled >= enough:
        return rows
    for length in (longest * k // 4 for k in (4, 5, 6, 8, 12)):
        packed = first_fit(rows, length)
        share = tokens / (len(packed) * max(len(row.ids) for row in packed))
        if share > filled:
            best, filled = packed, share
        if filled >= aim:
            break
    return best


def first_fit(rows: list[Row], length: int) -> list[Row]:
    """Rows of at most `length` tokens, each dialogue in the first that has room for it."""
    packed = []
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        with_room = (other for other in packed if len(other.ids) + len(row.ids) <= length)
        target = next(with_room, None)
        if target is None:
            packed.append(target := Row())
        document = target.document[-1] + 1 if target.document else 0
        target.document += [document] * len(row.ids)
        for name in ("ids", "role", "turn", "images"):
            getattr(target, name).extend(getattr(row, name))
    return packed
