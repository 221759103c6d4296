"""`agent.tiers.tenures`: work of an earlier tenure is not wanted any more."""

from __future__ import annotations

from kvtier.agent.sessions.namespaces import FIRST_GENERATION, Namespace, next_generation
from kvtier.agent.tiers.tenures import Tenures
from kvtier.core.namespace import NamespaceSpec, identity_digest

_SPEC = NamespaceSpec(name="model", block_bytes=(4096, 8192))


def _namespace(namespace_id: int = 1, spec: NamespaceSpec = _SPEC) -> Namespace:
    return Namespace(namespace_id, spec, {}, FIRST_GENERATION)


def test_a_tenure_is_of_one_generation_and_not_agreed_on_at_first() -> None:
    namespace, tenures = _namespace(), Tenures()
    tenure = tenures.begin(namespace)
    assert tenures.of(namespace) is tenure is tenures.of_id(1)
    assert tenure.is_current
    assert not tenure.is_agreed
    assert tenure.identity == identity_digest(_SPEC, FIRST_GENERATION)
    assert (tenure.block_bytes, tenure.label) == ((4096, 8192), _SPEC.label)


def test_another_one_ends_it_and_keeps_the_agreement_on_the_same_generation() -> None:
    namespace, tenures = _namespace(), Tenures()
    first = tenures.begin(namespace)
    first.is_agreed = True
    second = tenures.begin(namespace)
    assert (first.is_current, second.is_current) == (False, True)
    assert second.is_agreed
    assert second.identity == first.identity


def test_another_generation_is_not_agreed_on_yet() -> None:
    namespace, tenures = _namespace(), Tenures()
    first = tenures.begin(namespace)
    first.is_agreed = True
    namespace.generation_id = next_generation(namespace.generation_id)
    second = tenures.begin(namespace)
    assert not second.is_agreed
    assert second.identity != first.identity
    # What is agreed too late is of no use to the one that follows.
    first.is_agreed = True
    assert not tenures.of(namespace).is_agreed


def test_namespaces_do_not_concern_each_other() -> None:
    tenures = Tenures()
    one, two = _namespace(1), _namespace(2)
    first, other = tenures.begin(one), tenures.begin(two)
    tenures.begin(one)
    assert (first.is_current, other.is_current) == (False, True)


def test_the_end_of_a_namespace_ends_its_tenure() -> None:
    namespace, tenures = _namespace(), Tenures()
    tenure = tenures.begin(namespace)
    tenures.end(namespace)
    assert not tenure.is_current
    assert tenures.of_id(1) is None


def test_nothing_is_agreed_on_while_it_is_suspended() -> None:
    namespace, tenures = _namespace(), Tenures()
    tenure = tenures.begin(namespace)
    tenure.is_agreed = True
    tenures.suspend(namespace)
    assert (tenure.is_current, tenure.is_agreed) == (False, False)
    assert not tenures.begin(namespace).is_agreed


def test_a_namespace_that_is_gone_has_one_that_has_ended() -> None:
    namespace, tenures = _namespace(), Tenures()
    tenures.suspend(namespace)
    assert not tenures.of(namespace).is_current
    assert tenures.of_id(1) is None
