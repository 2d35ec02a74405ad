"""Mosquitto's files: three listeners, each with TLS, and passwords as Mosquitto keeps them.

Paths are relative to the folder in which it runs: `cd DIR/broker && mosquitto -c mosquitto.conf`.
SIGHUP makes Mosquitto read access rules, passwords, revocation list, authorities and its own certificate
again; a listener's port and limits, and an authority to be forgotten, take a restart.

Source: mosquitto.conf(5) of 2.0.11, the oldest version that this is tested with
"""

from __future__ import annotations

import hashlib
import hmac
import os
import pwd
from base64 import b64decode, b64encode
from collections.abc import Mapping

from exchange.towns import Broker

# Passwords are random, 192 bits: nothing is gained by making a guess dear. Mosquitto's own default.
_ITERATIONS = 101
_SALT_BYTES = 12  # Mosquitto 2.0 takes no other length


def configuration(broker: Broker, owner_id: int) -> str:
    """Return mosquitto.conf; started by root, Mosquitto becomes the user with that number."""
    try:
        owner = pwd.getpwuid(owner_id).pw_name
    except KeyError:  # a number without a name: a container's, where nothing starts as root
        owner = str(owner_id)
    return _CONFIGURATION.format(broker=broker, owner=owner)


def password_hash(password: str, salt: bytes | None = None) -> str:
    """Return what `mosquitto_passwd` would write: PBKDF2 with SHA-512."""
    salt = salt or os.urandom(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${b64encode(salt).decode()}${b64encode(digest).decode()}"


def password_fits(password: str, hashed: str) -> bool:
    """Whether it is the password of a hash that was made here."""
    salt = b64decode(hashed.split("$")[3])
    return hmac.compare_digest(password_hash(password, salt), hashed)


def read_passwords(text: str) -> dict[str, str]:
    """Return the hashes of a password file by user."""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def written_passwords(hashes: Mapping[str, str]) -> str:
    """Return the password file."""
    return "".join(f"{user}:{hashes[user]}\n" for user in sorted(hashes))


_CONFIGURATION = """\
# Made by `onestreet town` from towns/*.toml: what is changed here is lost with the next command.
per_listener_settings true
user {owner}

# Gateways that hold a key. The certificate's common name is the user, and the user is the client id:
# nobody takes over another's session.
listener {broker.port}
allow_anonymous false
acl_file acl
cafile ca.pem
certfile server.pem
keyfile server.key
crlfile crl.pem
require_certificate true
use_identity_as_username true
use_username_as_clientid true
tls_version tlsv1.2
max_connections 10000

# Gateways that cannot hold a key.
listener {broker.password_port}
allow_anonymous false
acl_file acl
password_file passwords
certfile server.pem
keyfile server.key
use_username_as_clientid true
tls_version tlsv1.2
max_connections 10000

# Ingest, watch and applications: one certificate, one connection.
listener {broker.service_port}
allow_anonymous false
acl_file acl
cafile ca.pem
certfile server.pem
keyfile server.key
crlfile crl.pem
require_certificate true
use_identity_as_username true
use_username_as_clientid true
tls_version tlsv1.2
max_connections 1000

set_tcp_nodelay true
persistence true
persistence_location data/
pid_file data/mosquitto.pid
autosave_interval 30
persistent_client_expiration 7d

# Bounds. Packs are 256 KiB at most; what is larger than a pack is still carried, so that ingest can
# refuse it with a receipt. Beyond a full queue Mosquitto drops, and gateways send again.
message_size_limit 2097152
max_packet_size 2162688
max_inflight_messages 100
max_queued_messages 100000
max_queued_bytes 268435456
max_keepalive 3600

log_dest stderr
log_timestamp_format %Y-%m-%dT%H:%M:%S
log_type error
log_type warning
log_type notice
"""
