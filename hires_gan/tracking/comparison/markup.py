"""HTML from Python: text is escaped unless it is markup already, so that no run's name or setting becomes markup."""

from __future__ import annotations

import base64
from html import escape


class Markup(str):
    """HTML as it is to stand in the page."""

    __slots__ = ()


_VOID = ("img", "meta", "line")


def element(name: str, /, *children: str, **attributes: str) -> Markup:
    """An element.

    Args:
        name: Its name.
        *children: Markup, or text, which is escaped.
        **attributes: Escaped; `class_` stands for `class`, and `_` for `-`.
    """
    opening = "".join(f' {_attribute(key)}="{escape(value)}"' for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{opening}/>")
    return Markup(f"<{name}{opening}>{joined(*children)}</{name}>")


def joined(*children: str) -> Markup:
    """Markup and text, which is escaped, one behind the other."""
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children))


def data_uri(data: bytes, kind: str) -> str:
    """A file within the page; `kind` is its media type, such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")
