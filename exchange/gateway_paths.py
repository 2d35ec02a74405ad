"""Where a gateway has its files, as the unit, the installer and an office's bundle put them there."""

from pathlib import Path

CONFIG = Path("/etc/onestreet/edge.toml")
STATE = Path("/var/lib/onestreet")
"""What outlives a restart: the outbox, commands, the status socket."""
RUNTIME = Path("/run/onestreet")
"""What outlives the process, and no power cut: the first stage of the outbox."""
