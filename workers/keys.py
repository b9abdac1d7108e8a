"""The CURVE keys that a configuration names, loaded for the end that needs them."""

from streaming.config import Config
from streaming.curve import ClientKeys, ServerKeys, load_pair, load_public
from streaming.errors import ConfigError


def client_keys(config: Config, endpoint: str) -> ClientKeys | None:
    """For a capture worker: its own pair and the encoder's public key. None where nothing leaves the host."""
    keys = config.transport.keys
    if keys is None or not endpoint.startswith("tcp:"):
        return None
    if keys.server is None:
        raise ConfigError("transport.keys.server: expected the encoder host's public key file on a capture host")
    return ClientKeys(load_pair(keys.secret), load_public(keys.server))


def server_keys(config: Config, endpoint: str) -> ServerKeys | None:
    """For an encoder: its own pair and the folder of the capture hosts that may connect."""
    keys = config.transport.keys
    if keys is None or not endpoint.startswith("tcp:"):
        return None
    if keys.clients is None:
        raise ConfigError("transport.keys.clients: expected the folder of the capture hosts' public keys")
    return ServerKeys(load_pair(keys.secret), keys.clients)
