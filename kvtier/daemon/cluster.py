"""CLUSTER as the configuration wants it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from kvtier.agent.moving.demotion import WritePolicy
from kvtier.agent.tiers.cluster import ClusterOptions
from kvtier.config import AgentConfig, load_password, load_sealing_keys
from kvtier.tiers.cluster.codec import Codec
from kvtier.tiers.cluster.embedded import EmbeddedValkey
from kvtier.tiers.cluster.sealing import Sealer
from kvtier.tiers.cluster.storage import ClusterStorage
from kvtier.tiers.cluster.topology import ClusterSettings
from kvtier.tiers.cluster.url import (
    ClusterUrl,
    Credentials,
    Deployment,
    TlsFiles,
    Transport,
    parse_url,
)

_CODECS = {"none": Codec.NONE, "planes_lz4": Codec.PLANES_LZ4}
#: Beside those that move blocks: two that ask, and one for what is deleted.
_MORE_CONNECTIONS = 3


def cluster_storage(config: AgentConfig) -> ClusterStorage:
    """Connects to nothing yet. Raises ConfigError for files and variables that cannot be used."""
    cluster = config.tiers.cluster
    url = parse_url(cluster.url or "")
    if url.deployment is Deployment.EMBEDDED:
        path = EmbeddedValkey.socket_in(embedded_directory(config))
        url = ClusterUrl(Deployment.SERVER, Transport.UNIX, path=str(path))
    keys, current = load_sealing_keys(cluster)
    return ClusterStorage(
        ClusterSettings(
            url,
            Credentials(cluster.username or "", load_password(cluster, os.environ)),
            TlsFiles(cluster.tls_ca, cluster.tls_cert, cluster.tls_key),
            connections=cluster.connections + _MORE_CONNECTIONS,
            connect_timeout_seconds=cluster.timeout,
        ),
        Sealer(keys, current),
        key_prefix=cluster.key_prefix,
        ttl_seconds=cluster.ttl,
        timeout_seconds=cluster.timeout,
    )


def is_embedded(config: AgentConfig) -> bool:
    """Whether the agent starts a server of its own."""
    return config.tiers.cluster.url == "embedded"


def embedded_directory(config: AgentConfig) -> Path:
    """Of the server that the agent starts for itself."""
    return config.socket_dir / "valkey"


def cluster_options(config: AgentConfig) -> ClusterOptions:
    cluster = config.tiers.cluster
    return ClusterOptions(
        write_policy=WritePolicy(cluster.write_policy),
        after_hits=cluster.write_after_hits,
        connections=cluster.connections,
        timeout_seconds=cluster.timeout,
        lookup_seconds=cluster.lookup_timeout,
        max_in_flight_bytes=cluster.max_in_flight,
        hit_seconds=cluster.hit_seconds,
        miss_seconds=cluster.miss_seconds,
        heartbeat_seconds=cluster.heartbeat,
    )


def codec_of(config: AgentConfig, label: str) -> Codec:
    """How blocks of `tenant/name` or `tenant/name@digest` are stored."""
    cluster = config.tiers.cluster
    return _CODECS[cluster.codecs.get(label.partition("@")[0], cluster.codec)]


def node_name(config: AgentConfig) -> str:
    return config.tiers.cluster.node_name or socket.gethostname()
