"""Why a block is not, or no longer, in a tier."""

from __future__ import annotations

from enum import IntEnum


class Cause(IntEnum):
    """The last thing that happened to it there. Below 32, for `agent.operating.history`."""

    #: The policy let it go, to make room in its own size class.
    EVICTED = 1
    #: The same, to give its extent to another size class.
    TRADED = 2
    #: The same, for a smaller capacity.
    RESIZED = 3
    #: The same, for a namespace's limit.
    OVER_QUOTA = 4
    #: Its bytes were not what they should be, or could not be read.
    DAMAGED = 5
    #: It was not damaged itself; what it lay in was given up, or could not be synced.
    LOST = 6
    #: Its time to live was over.
    EXPIRED = 7
    #: Somebody asked for it.
    REMOVED = 8
    #: Its namespace has a new generation.
    INVALIDATED = 9
    #: A younger copy took its place: it is still there.
    SUPERSEDED = 10
    #: It was not let in: whatever could have made way is in use.
    NO_ROOM = 16
    #: It was not let in: its session has as much in use as one may.
    SESSION_SHARE = 17
    #: It was not let in: the policy holds on to what is worth more.
    WORTH_LESS = 18
    #: It was not let in: its namespace is at its limit.
    QUOTA = 19
    #: It was not let in: admission wants to see it again first.
    ADMISSION = 20

    @property
    def is_refusal(self) -> bool:
        """Whether the block never came in."""
        return self >= Cause.NO_ROOM
