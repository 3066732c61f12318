"""Removal from indexes that cannot remove: what was removed is passed over in what they find."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch

from memcore.approximate_index import Found

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Tombstones:
    """Labels of vectors that were removed and that the index goes on finding."""

    def __init__(self) -> None:
        self._labels = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return int(self._labels.numel())

    def add(self, labels: Tensor) -> None:
        """Take labels in, ``[n]`` int64, none of them for the second time."""
        self._labels = torch.cat((self._labels, labels)).sort().values

    def copy(self) -> Self:
        """Return tombstones of the same vectors."""
        twin = type(self)()
        twin._labels = self._labels
        return twin

    def find(self, search: Callable[[int], tuple[Tensor, Tensor]], count: int, most: int) -> Found | None:
        """Search for more, and more again, until ``count`` are left when those removed are passed over.

        Args:
            search: takes a number ``k`` and returns products and labels, ``[Q, k]``.
            count: wanted.
            most: the largest ``k`` that ``search`` takes.

        Returns:
            ``[Q, count]``, -1 where not enough were left; None if ``count`` is more than ``most``.
        """
        if count > most:
            return None
        if not len(self):
            products, labels = search(count)
            return Found(labels=labels, products=products)
        wanted = count
        while True:
            wanted = min(2 * wanted, count + len(self), most)
            products, labels = search(wanted)
            places = torch.searchsorted(self._labels, labels).clamp_(max=len(self) - 1)
            live = (labels >= 0) & (self._labels[places] != labels)
            if bool((live.sum(dim=1) >= count).all()) or wanted in (most, count + len(self)):
                break
        order = live.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
        return Found(
            labels=labels.masked_fill_(~live, -1).gather(1, order),
            products=products.masked_fill_(~live, -torch.inf).gather(1, order),
        )
