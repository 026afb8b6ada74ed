"""Where the threads of this process are."""

from __future__ import annotations

import sys
import threading
import traceback

FRAMES = 30
"""Of a stack, the innermost."""


def own_stacks() -> str:
    """The Python stacks of all threads, the main thread first; those of the watch itself are left out."""
    frames, names = sys._current_frames(), {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    parts = []
    for ident in sorted(frames, key=lambda ident: (ident != main, ident)):
        name = names.get(ident, "not Python's")
        if not name.startswith("watch: "):
            stack = traceback.format_stack(frames[ident])[-FRAMES:]
            parts.append(f"thread {name}, most recent call last:\n{''.join(stack)}")
    return "\n".join(parts)
