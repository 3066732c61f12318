"""The namespaces of a memory bank by name: found where a backend brought them along, kept there under their names."""

from __future__ import annotations

import torch

from memcore import usage_record
from memcore.backend import MemoryBackend, PersistentBackend
from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.shelves import TEMPORARY, Shelves
from memcore.view import Shelf, View


class Namespaces:
    """The views of a bank by name, the shelves that they read, and the clock of their uses.

    What a persistent backend brought along gets its view when it is asked for. If it is read-only, namespaces that are
    not to be kept lie on shelves in memory.

    Args:
        backend: the bank's.

    Attributes:
        shelves: where new chunks go.
        read_only: whether nothing can be kept.
        clock: of the latest use.
    """

    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend
        self._persistent = backend if isinstance(backend, PersistentBackend) else None
        self._views: dict[str, View] = {}
        self.clock = 0
        self.read_only = self._persistent is not None and self._persistent.read_only
        self.shelves = Shelves(ExactBackend(ExactOptions()) if self.read_only else backend)
        if not self.read_only:
            for name in backend.namespaces():
                if name.startswith(TEMPORARY):
                    backend.drop(name)

    def put(self, name: str, view: View) -> None:
        """Give a namespace this view, whatever it had before."""
        self._views[name] = view

    def views(self) -> list[View]:
        """Return the views there are so far."""
        return list(self._views.values())

    def find(self, name: str) -> View | None:
        """Return the view of a namespace, made now if the backend brought it along."""
        view = self._views.get(name)
        # A shelf may outlive the namespace it was made for, and is none then.
        if view is not None or name in self.shelves:
            return view
        with torch.inference_mode(False):
            backend_ids = self._backend.ids(name).cpu()
            record = None
            if self._persistent is not None:
                record = self._persistent.read_record(usage_record.record_name(name))
            if record is None and not backend_ids.numel():
                return None
            shelf = Shelf(self._backend, name)
            view, clock, forgotten = usage_record.unpack(record, backend_ids, shelf)
            self.clock = max(self.clock, clock)
            if self.read_only:
                shelf.ragged = True  # another process may add to it
                shelf.readers.add(view)
            else:
                if forgotten.numel():
                    self._backend.evict(name, forgotten)
                self.shelves.enter(shelf, view)
            self._views[name] = view  # last: the backend may raise
            return view

    def drop(self, name: str) -> None:
        """Let go of a namespace, of what it shares with no other, and of what is written down of its uses."""
        view = self.find(name)
        if view is not None:
            del self._views[name]
            self.shelves.leave(view)
        if self._persistent is not None and not self.read_only and not name.startswith(TEMPORARY):
            self._persistent.drop_record(usage_record.record_name(name))

    def forget(self, name: str) -> None:
        """Forget the view of a namespace that can only be read, so that it is looked at anew."""
        if name in self._views:
            self.shelves.leave(self._views.pop(name))

    def names(self) -> list[str]:
        """Return the names of all namespaces, sorted; also of those that a persistent backend brought along."""
        brought = {name for name in self._backend.namespaces() if not name.startswith(TEMPORARY)}
        if self._persistent is not None:  # what was emptied may be nothing to the backend
            brought |= usage_record.recorded(self._persistent.record_names())
        return sorted(self._views.keys() | (brought - self.shelves.names()))

    def settle(self) -> None:
        """Move every view that is kept to the shelf of its own name, write down its uses, and flush."""
        backend = self._persistent
        if backend is None or self.read_only:
            return
        named = {name: view for name, view in self._views.items() if not name.startswith(TEMPORARY)}
        with torch.inference_mode(False), torch.no_grad():
            self.shelves.settle(named)
            for name, view in named.items():
                if view.changed:
                    backend.write_record(usage_record.record_name(name), usage_record.pack(view, self.clock))
            backend.flush()
            for view in named.values():
                view.changed = False

    def close(self) -> None:
        """Forget what is not kept, settle the rest, and close the backend; if that fails, it can be tried again."""
        for name in [name for name in self._views if name.startswith(TEMPORARY)]:
            self.drop(name)
        self.settle()
        self._backend.close()
        self.shelves.backend.close()
        self._views.clear()
