"""Names from untrusted disks and archives, as people may see them."""

from __future__ import annotations


def escape(text: str) -> str:
    """Show unprintable characters (controls, line ends, bidirectional marks) as Python escapes."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
