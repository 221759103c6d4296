"""The namespaces that workers have registered."""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from kvtier.access.scope import ALL, Scope
from kvtier.agent.sessions.usage import Usage
from kvtier.core.block import BlockKeys, Tier
from kvtier.core.namespace import Identity, NamespaceSpec
from kvtier.core.policies.base import STEP, Asking
from kvtier.core.rules import NO_RULE, NamespaceRule, rule_for
from kvtier.errors import (
    InvalidRequestError,
    LayoutConflictError,
    NotFoundError,
    OverloadedError,
)
from kvtier.tiers.companions import Companions
from kvtier.tiers.size_class import SizeClass
from kvtier.tiers.slot_tier import SlotTier

log = logging.getLogger(__name__)


_GENERATION_ID_BYTES = 16

OnAsked = Callable[["Namespace", BlockKeys], None]


class LayoutConflict(Enum):
    """What to do when another layout is registered under a name."""

    WARN = "warn"
    REJECT = "reject"


@dataclass(eq=False)
class Namespace:
    """One registered layout: for each tier its size class per KV group; and who uses it."""

    namespace_id: int
    spec: NamespaceSpec
    tiers: dict[Tier, tuple[SizeClass, ...]]
    generation_id: bytes
    session_count: int = 0
    #: Nothing of it is read from slower tiers, nor written to them.
    is_renewing: bool = False
    #: Are told what workers look for: the list of `Namespaces`.
    on_asked: list[OnAsked] = field(default_factory=list, repr=False)
    rule: NamespaceRule = NO_RULE
    #: Copies of what HOST has: as `tiers`, for each device.
    devices: tuple[tuple[SizeClass, ...], ...] = ()
    usage: Usage = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.usage = Usage(self.spec)

    @property
    def label(self) -> str:
        return self.spec.label

    @property
    def groups(self) -> tuple[SizeClass, ...]:
        """HOST's."""
        return self.tiers[Tier.HOST]

    def classes_of(self, tier: Tier) -> list[SizeClass]:
        """Its size classes in a tier; groups of one size share one."""
        return list(dict.fromkeys(self.tiers.get(tier, ())))

    def ask(self, keys: BlockKeys) -> None:
        """A worker looks for these blocks: tells the policies."""
        for _ in self.asking(keys):
            pass

    def asking(self, keys: BlockKeys) -> Generator[None]:
        """As `ask`, in steps that are short enough for a turn of the loop each."""
        if not keys.hashes:
            return
        for on_asked in self.on_asked:
            on_asked(self, keys)
        for _, size_classes in self.places:
            policy = size_classes[keys.lane.group].policy
            # The length first: to find out what a policy has takes 10 us.
            if len(keys.hashes) > STEP and isinstance(policy, Asking):
                yield from policy.asking(keys)
            else:
                policy.ask(keys)

    @property
    def places(self) -> list[tuple[Tier, tuple[SizeClass, ...]]]:
        """Each device's and each tier's; copies before what they are copies of."""
        return [*((Tier.GPU, each) for each in self.devices), *self.tiers.items()]

    @property
    def is_empty(self) -> bool:
        """Whether no tier has space of it."""
        return not any(each.extents for _, size_classes in self.places for each in size_classes)


class Namespaces:
    """Namespaces by layout. One without sessions and memory makes way when there are too many."""

    def __init__(
        self,
        tiers: Sequence[SlotTier],
        *,
        limit: int,
        layout_conflict: LayoutConflict = LayoutConflict.WARN,
        rules: Sequence[NamespaceRule] = (),
        devices: Sequence[SlotTier] = (),
    ) -> None:
        self._tiers = tiers
        self._devices = devices
        self._limit = limit
        self._layout_conflict = layout_conflict
        self._rules = rules
        self.on_added: list[Callable[[Namespace], None]] = []
        self.on_dropped: list[Callable[[Namespace], None]] = []
        self.on_asked: list[OnAsked] = []
        self._ids = itertools.count(1)
        self._by_identity: dict[Identity, Namespace] = {}
        self._by_name: defaultdict[tuple[str, str], list[Namespace]] = defaultdict(list)
        # Of names whose layouts were compared, until there is another one or one less.
        self._differences: dict[tuple[str, str], list[str]] = {}

    def __iter__(self) -> Iterator[Namespace]:
        return iter(self._by_identity.values())

    def __len__(self) -> int:
        return len(self._by_identity)

    def register(self, spec: NamespaceSpec) -> tuple[Namespace, list[str]]:
        """The namespace of a spec, and the fields in which its siblings differ from it."""
        differences = self.sibling_differences(spec)
        if differences and self._layout_conflict is LayoutConflict.REJECT:
            raise LayoutConflictError(
                f"namespace {spec.tenant}/{spec.name} is registered with another layout; "
                f"it differs in {', '.join(differences)}. Use the same settings or another name"
            )
        namespace = self._by_identity.get(spec.identity)
        if namespace is None:
            self._make_way()
            namespace = self._add(spec)
            if differences:
                log.warning(
                    "%s: another layout has the same name; they share no blocks, and differ in %s",
                    spec.label,
                    ", ".join(differences),
                )
        return namespace, differences

    def restore(self, spec: NamespaceSpec, generation_id: bytes) -> Namespace:
        """One that an earlier run of the agent knew."""
        return self._add(spec, generation_id)

    def _add(self, spec: NamespaceSpec, generation_id: bytes | None = None) -> Namespace:
        namespace_id = next(self._ids)
        rule = rule_for(self._rules, spec.tenant, spec.name)
        for tier in (*self._tiers, *self._devices):
            tier.assign(namespace_id, rule)
        tiers = {tier.tier: _classes_of(tier, namespace_id, spec) for tier in self._tiers}
        devices = tuple(_classes_of(each, namespace_id, spec) for each in self._devices)
        if spec.shards > 1 or len(spec.block_bytes) > 1:
            for size_classes in (*tiers.values(), *devices):
                companions = Companions(size_classes, spec.shards, spec.needs_parents)
                for size_class in size_classes:
                    size_class.companions = companions
        namespace = Namespace(
            namespace_id,
            spec,
            tiers,
            generation_id or FIRST_GENERATION,
            rule=rule,
            on_asked=self.on_asked,
            devices=devices,
        )
        self._by_identity[spec.identity] = namespace
        self._by_name[spec.tenant, spec.name].append(namespace)
        self._differences.pop((spec.tenant, spec.name), None)
        for on_added in self.on_added:
            on_added(namespace)
        return namespace

    def sibling_differences(self, spec: NamespaceSpec) -> list[str]:
        """Layout fields in which namespaces of the same tenant and name differ from `spec`."""
        name = (spec.tenant, spec.name)
        is_known = spec.identity in self._by_identity
        if is_known and name in self._differences:
            return self._differences[name]
        # What differs from one differs among all: it is the same whichever of them asks.
        found: dict[str, None] = {}
        for each in self._by_name.get(name, ()):
            found.update(dict.fromkeys(spec.differences(each.spec)))
        if is_known:
            self._differences[name] = list(found)
        return list(found)

    def siblings(self, namespace: Namespace) -> list[Namespace]:
        """Those of the same tenant and name with another layout."""
        named = self._by_name.get((namespace.spec.tenant, namespace.spec.name), ())
        return [each for each in named if each is not namespace]

    def select(self, selector: str, scope: Scope = ALL) -> list[Namespace]:
        """Those that `tenant/name` or `tenant/name@digest` names; all for an empty selector.

        None but those of the scope. Raises NotFoundError when a selector names none.
        """
        covered = [each for each in self if scope.covers(each.spec.tenant, each.spec.name)]
        if not selector:
            return covered
        chosen = [each for each in covered if each.spec.matches(selector)]
        if not chosen:
            raise NotFoundError(
                f"no namespace {selector!r}; namespaces are named tenant/name or "
                "tenant/name@digest, and exist from a worker's first registration on"
            )
        return chosen

    def select_one(self, selector: str) -> Namespace:
        """The one that a selector names.

        Raises NotFoundError when there is none, InvalidRequestError when there are several.
        """
        if not selector:
            raise InvalidRequestError("namespace is empty; name one as tenant/name@digest")
        chosen = self.select(selector)
        if len(chosen) > 1:
            labels = ", ".join(each.label for each in chosen)
            raise InvalidRequestError(
                f"namespace {selector!r} has {len(chosen)} layouts; choose one of {labels}"
            )
        return chosen[0]

    def _make_way(self) -> None:
        if len(self) < self._limit:
            return
        for identity, each in self._by_identity.items():
            if each.session_count == 0 and each.is_empty:
                del self._by_identity[identity]
                self._forget_name(each)
                for tier in (*self._tiers, *self._devices):
                    tier.drop_namespace(each.namespace_id)
                for on_dropped in self.on_dropped:
                    on_dropped(each)
                return
        raise OverloadedError(
            f"{len(self)} namespaces are in use, as many as limits.max_namespaces allows"
        )

    def _forget_name(self, namespace: Namespace) -> None:
        name = (namespace.spec.tenant, namespace.spec.name)
        self._differences.pop(name, None)
        self._by_name[name].remove(namespace)
        if not self._by_name[name]:
            del self._by_name[name]


def _classes_of(tier: SlotTier, namespace_id: int, spec: NamespaceSpec) -> tuple[SizeClass, ...]:
    return tuple(tier.size_class(namespace_id, size) for size in spec.block_bytes)


#: Of a namespace that was never invalidated, so that nodes agree without asking.
FIRST_GENERATION = bytes(_GENERATION_ID_BYTES)


def next_generation(generation_id: bytes) -> bytes:
    """Blocks of a namespace under another generation id are not its blocks.

    Ids are ordered as bytes, and greater than those before, also than those of which this node has
    not heard, as far as clocks agree. Of two nodes that invalidate the same namespace at one time,
    one has the greater id, and the other follows.
    """
    count = max(int.from_bytes(generation_id[:8]) + 1, time.time_ns())
    return count.to_bytes(8) + secrets.token_bytes(_GENERATION_ID_BYTES - 8)
