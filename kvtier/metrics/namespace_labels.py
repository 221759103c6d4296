"""What namespaces are called in labels: a bounded number of names."""

from __future__ import annotations

from collections import Counter

from kvtier.agent.sessions.namespaces import Namespace
from kvtier.metrics.samples import Samples

OTHER = "other"


class NamespaceLabels:
    """`tenant/name` for the first ones, `other` for those beyond `most` names.

    Layouts of one name share a label: a new version of an engine goes on in the same series. A
    namespace keeps its label, so that no counter ever runs backwards; what one that made way had
    counted is kept under its label as long as others have it too.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._labels: dict[int, str] = {}
        self._users: Counter[str] = Counter()
        self._left: dict[str, Samples] = {}

    def add(self, namespace: Namespace) -> None:
        """It was registered."""
        label = f"{namespace.spec.tenant}/{namespace.spec.name}"
        if label not in self._users and len(self._users.keys() - {OTHER}) >= self._most:
            label = OTHER
        self._labels[namespace.namespace_id] = label
        self._users[label] += 1

    def of(self, namespace: Namespace) -> str:
        return self._labels[namespace.namespace_id]

    def drop(self, namespace: Namespace, counted: Samples) -> None:
        """It made way for another; `counted` is all that it had."""
        label = self._labels.pop(namespace.namespace_id)
        self._users[label] -= 1
        if self._users[label] or label == OTHER:
            self._left.setdefault(label, Samples()).add_counts(counted)
        else:
            del self._users[label]
            self._left.pop(label, None)

    def add_left(self, samples: Samples) -> None:
        """Adds what those had that made way."""
        for each in self._left.values():
            samples.add_counts(each)
