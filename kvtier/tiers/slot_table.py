"""Extents and their slots, whatever they are made of."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterator

from kvtier.core import slots as layout

NO_OWNER = -1


class Extent:
    """A piece of a tier's space for one namespace, cut into slots of one size.

    Populating and discarding take time: a mover does it, in between two decisions of the loop.
    """

    #: Where it lies, among places that work side by side: each gets its share of what is taken.
    stripe = 0

    def __init__(self, extent_id: int, base: int, slots: int, slot_bytes: int) -> None:
        self.extent_id = extent_id
        self.base = base
        self.slots = slots
        self.slot_bytes = slot_bytes
        self.populated_slots = 0
        self.used_slots = 0
        self.populating = False
        #: Its free slots are not handed out; because it is to be emptied, or is still being read.
        self.withheld = False
        self.retiring = False

    @property
    def size_bytes(self) -> int:
        return self.slots * self.slot_bytes

    def populate(self, slots: int) -> None:
        """Allocates the next slots. Called by a mover."""
        raise NotImplementedError

    def discard(self) -> None:
        """Gives all space back. Called by a mover."""
        raise NotImplementedError


class SlotTable:
    """The slots of one namespace: generation, references and owner of each.

    `references` counts the leases, holds and reservations on a slot; `owner` is the row of the
    block in it, or -1. A slot with neither is free. Slots are numbered from 0; an extent owns the
    numbers from its base on.
    """

    def __init__(self, namespace_id: int, generations: array[int] | memoryview[int]) -> None:
        self.namespace_id = namespace_id
        self.generations = generations
        self.references = array("I")
        self.owner = array("q")
        self.extents: list[Extent | None] = []

    def extent_of(self, slot: int) -> Extent:
        extent = self.extents[slot // layout.SLOTS_PER_PAGE]
        assert extent is not None, slot
        return extent

    def allocate_base(self, slots: int) -> int:
        """The first slot number of a free range of whole table pages."""
        pages, start, run = layout.table_pages(slots), 0, 0
        for page, extent in enumerate(self.extents):
            run = run + 1 if extent is None else 0
            if run == pages:
                start = page + 1 - pages
                break
        else:
            start = len(self.extents) - run
            missing = pages - run
            self.extents.extend([None] * missing)
            self.references.extend([0] * (missing * layout.SLOTS_PER_PAGE))
            self.owner.extend([NO_OWNER] * (missing * layout.SLOTS_PER_PAGE))
        return start * layout.SLOTS_PER_PAGE

    def install(self, extent: Extent) -> None:
        self._set_pages(extent, extent)

    def discard(self, extent: Extent) -> None:
        """Frees the numbers of an extent."""
        self._set_pages(extent, None)

    def _set_pages(self, extent: Extent, value: Extent | None) -> None:
        first = extent.base // layout.SLOTS_PER_PAGE
        for page in range(first, first + layout.table_pages(extent.slots)):
            self.extents[page] = value


class _Stripe:
    """The free slots of one stripe, by page of the table: a page is found and dropped at once."""

    def __init__(self) -> None:
        self.count = 0
        self.pages: dict[int, list[int]] = {}
        #: Pages that have or had slots, as a heap; each once.
        self._order: list[int] = []
        self._ordered: set[int] = set()

    def put(self, slot: int) -> None:
        self.count += 1
        page = slot // layout.SLOTS_PER_PAGE
        heap = self.pages.get(page)
        if heap is not None:
            heapq.heappush(heap, slot)
            return
        self.pages[page] = [slot]
        if page not in self._ordered:
            self._ordered.add(page)
            heapq.heappush(self._order, page)

    def take(self, count: int) -> list[int]:
        """So many, which there are."""
        taken: list[int] = []
        self.count -= count
        while len(taken) < count:
            page = self._order[0]
            heap = self.pages.get(page)
            while heap and len(taken) < count:
                taken.append(heapq.heappop(heap))
            if not heap:
                self.pages.pop(page, None)
                self._ordered.discard(heapq.heappop(self._order))
        return taken

    def keep(self, page: int, is_kept: Callable[[int], bool]) -> None:
        """Takes the others out of a page."""
        heap = self.pages.get(page, [])
        kept = [slot for slot in heap if is_kept(slot)]
        self.count -= len(heap) - len(kept)
        if kept:
            heapq.heapify(kept)
            self.pages[page] = kept
        else:
            self.pages.pop(page, None)


class FreeSlots:
    """Slots to be handed out: the lowest first, from all stripes alike."""

    def __init__(self) -> None:
        self._stripes: dict[int, _Stripe] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        for stripe in self._stripes.values():
            for heap in stripe.pages.values():
                yield from heap

    def put(self, slot: int, stripe: int) -> None:
        self._count += 1
        place = self._stripes.get(stripe)
        if place is None:
            place = self._stripes[stripe] = _Stripe()
        place.put(slot)

    def take(self, count: int) -> list[int]:
        """Up to so many."""
        count = min(count, self._count)
        self._count -= count
        taken: list[int] = []
        # Those that have few give what they have.
        stripes = sorted(self._stripes.values(), key=lambda each: each.count)
        for left, stripe in zip(range(len(stripes), 0, -1), stripes, strict=True):
            taken += stripe.take(min(stripe.count, (count - len(taken)) // left))
        return taken

    def take_if(self, is_wanted: Callable[[int], bool]) -> list[int]:
        """All that are wanted; looks at every one."""
        taken = [slot for slot in self if is_wanted(slot)]
        wanted = set(taken)
        for stripe in self._stripes.values():
            before = stripe.count
            for page in list(stripe.pages):
                stripe.keep(page, lambda slot: slot not in wanted)
            self._count -= before - stripe.count
        return taken

    def withdraw(self, slots: range, stripe: int) -> None:
        """Takes out those of a range; looks at its pages alone."""
        place = self._stripes.get(stripe)
        if place is None or not slots:
            return
        before = place.count
        size = layout.SLOTS_PER_PAGE
        for page in range(slots.start // size, (slots.stop - 1) // size + 1):
            place.keep(page, lambda slot: slot not in slots)
        self._count -= before - place.count
