"""The agent's gRPC services."""

import os

# gRPC for Python offers no lowest version of TLS. But this is the list of ciphers for TLS 1.2, read
# once, when gRPC is imported; without a pre-shared key no handshake can choose the one in it. Those
# of TLS 1.3 are fixed.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-AES128-CBC-SHA"
