"""One lamp behind an Intesis Modbus-DALI gateway: its hundred registers, as stale as the real ones."""

from __future__ import annotations

from collections.abc import Sequence

from device_drivers.kit.driver import Value
from device_drivers.kit.twin import ModbusException, Physics, Truth
from device_drivers.modbus.intesis_dali.driver import Settings

_FAILURES, _UPDATE, _STATUS, _LEVEL, _TYPE, _ARC_POWER = 3, 4, 5, 6, 7, 15
_READABLE = range(3, 81)
_LED = 6
_ILLEGAL_FUNCTION, _ILLEGAL_ADDRESS, _ILLEGAL_VALUE = 1, 2, 3


class Twin:
    """Shows what `physics` says of level, lit, lamp_fault and gear_fault, as of the last update request.

    A level that was written stays the lamp's level until another is written or `commanded` is cleared.
    """

    commanded: int | None = None

    def __init__(self, settings: Settings, physics: Physics, truth: Truth) -> None:
        self.unit = settings.unit
        first = 7000 * settings.channel + 100 * settings.short_address
        self.addresses = range(first, first + 100)
        self._physics, self._truth = physics, truth
        self._registers: dict[int, int] = {}

    def read(self, function: int, address: int, count: int) -> Sequence[int]:
        if function not in (3, 4):
            raise ModbusException(_ILLEGAL_FUNCTION)
        offsets = range(address - self.addresses.start, address - self.addresses.start + count)
        if not count or offsets.start not in _READABLE or offsets[-1] not in _READABLE:
            raise ModbusException(_ILLEGAL_ADDRESS)
        if not self._registers:
            self._poll()  # the gateway has polled the lamp once before anybody asks
        if _STATUS in offsets and _LEVEL in offsets:
            self._truth(self._values(offsets))
        return [self._registers.get(offset, 0) for offset in offsets]

    def write(self, function: int, address: int, values: Sequence[int]) -> None:
        if function not in (6, 16):
            raise ModbusException(_ILLEGAL_FUNCTION)
        for offset, value in enumerate(values, address - self.addresses.start):
            if offset == _UPDATE and value == 1:
                self._poll()
            elif offset == _ARC_POWER and value <= 100:
                self.commanded = value
                self._registers[_ARC_POWER] = value
            else:
                known = offset in (_UPDATE, _ARC_POWER)
                raise ModbusException(_ILLEGAL_VALUE if known else _ILLEGAL_ADDRESS)

    def _poll(self) -> None:
        """Ask the lamp over DALI and keep what it says until the next time."""
        world = self._physics()
        lamp_fault = bool(world.get("lamp_fault", False))
        level = self.commanded
        if level is None:
            level = min(max(round(float(world.get("level", 0))), 0), 100)
        lit = level > 0 and not lamp_fault
        if self.commanded is None:
            lit = bool(world.get("lit", lit))
        status = bool(world.get("gear_fault", False)) | lamp_fault << 1 | lit << 2
        arc_power = self._registers.get(_ARC_POWER, level)
        self._registers = {_STATUS: status, _LEVEL: level, _TYPE: _LED, _ARC_POWER: arc_power}

    def _values(self, offsets: range) -> dict[str, Value]:
        status = self._registers[_STATUS]
        values: dict[str, Value] = {
            "gear_fault": bool(status & 1),
            "lamp_fault": bool(status & 2),
            "lit": bool(status & 4),
            "x-intesis-limit_error": 0,
            "x-intesis-fade_running": 0,
            "x-intesis-reset_state": 0,
            "x-intesis-missing_short_address": 0,
            "x-intesis-power_cycle": 0,
            "level": self._registers[_LEVEL],
        }
        if _FAILURES in offsets:
            values["x-intesis-failure_bits"] = 0
        if _TYPE in offsets:
            values["x-intesis-device_type"] = _LED
        return values
