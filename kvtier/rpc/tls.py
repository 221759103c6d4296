"""TLS of a gRPC server: certificates on both sides, changed while it runs.

`kvtier.rpc` itself sees to version 1.3, and `rpc.guard` once more.
"""

from __future__ import annotations

import grpc

from kvtier.access.certificates import Certificates


class ServerTls:
    """Credentials of a server. Each handshake takes the newest certificates."""

    def __init__(self, certificates: Certificates) -> None:
        self.replace(certificates)
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._configuration, lambda: self._configuration, require_client_authentication=True
        )

    def replace(self, certificates: Certificates) -> None:
        """Connections that there are go on with those of before."""
        self._configuration = grpc.ssl_server_certificate_configuration(
            [(certificates.key, certificates.chain)], root_certificates=certificates.client_ca
        )
