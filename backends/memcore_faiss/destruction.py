"""When faiss's objects are destroyed: in a context, whichever thread lets go of them last, and whenever."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


def destroyed_within(context: Callable[[], AbstractContextManager[object]], made: Any) -> Any:
    """Return what faiss made, of which the C++ object is from now on destroyed in a context.

    That happens when the last reference to it is gone, in whichever thread that is, and perhaps while Python looks for
    garbage. So the context must be one that can be entered anywhere, such as that of a lock which is reentrant.

    Args:
        context: makes the context.
        made: what a constructor or a function of faiss returned, and nothing in C++ has taken over.
    """
    handle = made.this
    handle.disown()
    # At the end of the process nothing is destroyed: what a GPU's needs may be gone by then, and its memory is free.
    weakref.finalize(made, _destroy, context, type(made).__swig_destroy__, handle).atexit = False
    return made


def _destroy(
    context: Callable[[], AbstractContextManager[object]], destroy: Callable[[Any], None], handle: Any
) -> None:
    with context():
        destroy(handle)
