"""A BTHome v2 sensor on the air: plain or encrypted, one packet id (and counter) per advert."""

from __future__ import annotations

import struct

from cryptography.hazmat.primitives.ciphers.aead import AESCCM

from device_drivers.ble.bthome.driver import Settings, bindkey_of
from device_drivers.kit.driver import Value
from device_drivers.kit.twin import Physics, Truth

PERIOD_S = 1.0

_UUID = "0000fcd2-0000-1000-8000-00805f9b34fb"
_PLAIN, _ENCRYPTED = 0x40, 0x41

# metric -> object id, its layout, steps per unit of the metric; ascending ids, as the format asks
_OBJECTS: dict[str, tuple[int, str, int]] = {
    "x-bthome-battery": (0x01, "B", 1),
    "temperature": (0x02, "h", 100),
    "humidity": (0x03, "H", 100),
    "battery_voltage": (0x0C, "H", 1000),
    "voltage": (0x0C, "H", 1000),
    "pm2_5": (0x0D, "H", 1),
    "pm10": (0x0E, "H", 1),
    "co2": (0x12, "H", 1),
    "tvoc": (0x13, "H", 1),
    "occupied": (0x23, "B", 1),
    "distance": (0x40, "H", 1000),
    "current": (0x43, "H", 1000),
    "energy": (0x4D, "I", 1),
    "power": (0x5C, "i", 100),
}
_LIMITS = {"B": (0, 0xFF), "H": (0, 0xFFFF), "h": (-0x8000, 0x7FFF)}
_LIMITS |= {"I": (0, 0xFFFFFFFF), "i": (-0x80000000, 0x7FFFFFFF)}


class Twin:
    """Advertises whatever `physics` says of the metrics it has an object for."""

    period_s = PERIOD_S

    def __init__(self, settings: Settings, physics: Physics, truth: Truth) -> None:
        self.address = settings.address.upper()
        self.name = f"BTHome {self.address[-5:]}"
        self._voltage = settings.voltage
        self._key = bindkey_of(settings)
        self._physics, self._truth = physics, truth
        self._packet_id = 0
        self._counter = 0

    def advert(self) -> tuple[dict[int, bytes], dict[str, bytes]]:
        self._packet_id = (self._packet_id + 1) % 256
        objects = bytes((0x00, self._packet_id))
        values: dict[str, Value] = {}
        world = self._physics()
        for metric, (object_id, layout, steps) in _OBJECTS.items():
            if metric not in world or (object_id == 0x0C and metric != self._voltage):
                continue
            low, high = _LIMITS[layout]
            raw = min(max(round(world[metric] * steps), low), high)
            if metric == "occupied":
                raw = bool(raw)
            objects += struct.pack("<B" + layout, object_id, raw)
            values[metric] = raw if steps == 1 else raw / steps
        self._truth(values)
        return {}, {_UUID: self._seal(objects)}

    def _seal(self, objects: bytes) -> bytes:
        if self._key is None:
            return bytes((_PLAIN,)) + objects
        self._counter += 1
        counter = self._counter.to_bytes(4, "little")
        mac = bytes.fromhex(self.address.replace(":", ""))
        nonce = mac + b"\xd2\xfc" + bytes((_ENCRYPTED,)) + counter
        sealed = AESCCM(self._key, tag_length=4).encrypt(nonce, objects, None)
        return bytes((_ENCRYPTED,)) + sealed[:-4] + counter + sealed[-4:]
