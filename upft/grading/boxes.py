r"""The \boxed{} of a text: what stands in it, and whether the text breaks off inside one. One pass, however long."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(r"(?P<box>(?:\\{1,2}(?:boxed|fbox|framebox)|\x08oxed)\s*\{)|(?P<open>\{)|(?P<close>\})|\\[\s\S]")
_BARE = re.compile(r"\\(?:boxed|fbox)\s*(-?[^\s{}$\\]+)")  # TeX takes the next sign; people mean the next word


@dataclass(frozen=True)
class Box:
    """content: what the last complete box holds that is not empty; None without one. cut: where a later box begins
    that never ends, None without one."""

    content: str | None
    cut: int | None


def last_box(text: str) -> Box:
    r"""The last box of \boxed, \fbox or \framebox whose braces close; of nested ones the innermost.

    \{ and \} belong to the answer, not to the box. A backspace before "oxed" is a \b that some JSON reader ate.
    """
    depth: list[tuple[int, int]] = []  # (where its sign begins or -1 for a plain brace, where its content begins)
    best = (-1, None)  # type: tuple[int, str | None]
    for token in _TOKEN.finditer(text):
        if token["box"] is not None:
            depth.append((token.start(), token.end()))
        elif token["open"] is not None:
            depth.append((-1, token.end()))
        elif token["close"] is not None and depth:
            begin, inside = depth.pop()
            if begin > best[0]:
                content = text[inside:token.start()].strip()
                if content:
                    best = (begin, content)
    cut = max((begin for begin, _ in depth), default=-1)
    if best[1] is None and cut < 0:
        bare = _BARE.findall(text)
        if bare:
            return Box(bare[-1].rstrip(".,;"), None)
    return Box(best[1], cut if cut > best[0] else None)
