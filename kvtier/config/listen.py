"""The section `listen`: the agent's APIs on TCP."""

from __future__ import annotations

from typing import Annotated

from pydantic import Strict, model_validator

from kvtier.config.section import File, Seconds, Section
from kvtier.config.tcp_address import TcpAddress, host_and_port


class ListenConfig(Section):
    """Off unless an address is given; then with TLS on both sides, or expressly without."""

    address: TcpAddress | None = None
    """For workers on other nodes."""
    admin_address: TcpAddress | None = None
    """For operators and readers."""
    credentials_file: File | None = None
    """Who may call, and what; mode 0600."""
    tls_cert: File | None = None
    tls_key: File | None = None
    """Mode 0600."""
    tls_client_ca: File | None = None
    """What signs the certificates of callers."""
    insecure: Annotated[bool, Strict()] = False
    """No TLS: tokens and blocks can be read, and blocks changed, by whoever is on the way."""
    reload_interval: Seconds = 5.0
    """So often the files above are looked at; what has changed holds from then on."""

    @model_validator(mode="after")
    def _says_how_callers_are_known(self) -> ListenConfig:
        files = {
            "tls_cert": self.tls_cert,
            "tls_key": self.tls_key,
            "tls_client_ca": self.tls_client_ca,
        }
        given = [name for name, file in files.items() if file is not None]
        missing = [name for name in files if name not in given]
        if self.insecure and given:
            raise ValueError(
                f"insecure: true and {', '.join(given)} contradict each other; leave out either"
            )
        if not self.insecure and given and missing:
            raise ValueError(f"with {', '.join(given)} it needs {', '.join(missing)} too")
        if self.address is None and self.admin_address is None:
            return self
        same = self.address if self.address == self.admin_address else None
        if same is not None and host_and_port(same)[1]:
            raise ValueError(f"address and admin_address are both {same}; give each its own")
        if not self.insecure and missing:
            raise ValueError(
                f"address and admin_address need {', '.join(missing)}, for TLS on both sides; or, "
                "without any protection of what is sent, insecure: true"
            )
        if self.credentials_file is None:
            raise ValueError(
                "address and admin_address need credentials_file: without it nobody is let in"
            )
        return self
