"""A Plantower PMS sensor on its serial line: active and passive mode, sleep and wake, all variants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from device_drivers.kit.driver import Value
from device_drivers.kit.twin import Physics, Truth
from device_drivers.serial.plantower_pms.driver import Settings

PERIOD_S = 1.0
"""Between its 0.2 s in changing air and its 2.3 s in steady air."""

_VERSION = 0x97
_RESERVED = 0x51
_READ, _MODE, _SLEEP = 0xE2, 0xE1, 0xE4
_HEADER = b"\x42\x4d"
_COMMAND_BYTES = 7
_WORD_MAX = 0xFFFF
_COUNTS = ((180, 30), (54, 9), (9, 1), (1.5, 0), (0.4, 0), (0.1, 0))
"""Particles per 0.1 l of each size for one ug/m3 of PM10, and in clean air."""


def _frame(body: bytes) -> bytes:
    """Put header, length and sum around a body; the length counts the sum."""
    head = _HEADER + (len(body) + 2).to_bytes(2, "big") + body
    return head + (sum(head) & _WORD_MAX).to_bytes(2, "big")


def _words(values: Iterable[int]) -> bytes:
    return b"".join((value & _WORD_MAX).to_bytes(2, "big") for value in values)


def _whole(value: float) -> int:
    return min(max(round(value), 0), _WORD_MAX)


class Twin:
    """Speaks what `physics` says of pm1, pm2_5, pm10, temperature, humidity and hcho.

    It powers on in active mode, as the sensor does; what physics leaves out follows from pm2_5.
    """

    def __init__(self, settings: Settings, physics: Physics, truth: Truth) -> None:
        self._model = settings.model
        self._physics, self._truth = physics, truth
        self._active = self._awake = True
        self._heard = b""

    @property
    def period_s(self) -> float | None:
        return PERIOD_S if self._active and self._awake else None

    def speak(self) -> bytes:
        body, values = self._measure()
        self._truth(values)
        return _frame(body)

    def hear(self, data: bytes) -> bytes:
        answer = b""
        self._heard += data
        while len(self._heard) >= _COMMAND_BYTES:
            command = self._heard[:_COMMAND_BYTES]
            whole = command[:2] == _HEADER and sum(command[:5]) == int.from_bytes(command[5:])
            if whole:
                answer += self._obey(command[2], command[3:5])
            self._heard = self._heard[_COMMAND_BYTES if whole else 1 :]
        return answer

    def _obey(self, command: int, data: bytes) -> bytes:
        on = data[1] == 1
        if command == _SLEEP:
            self._awake = on
        elif not self._awake:
            return b""  # asleep it hears nothing but wake
        elif command == _READ:
            return b"" if self._active else self.speak()
        elif command == _MODE:
            self._active = on
        else:
            return b""
        return _frame(bytes((command, data[1])))

    def _measure(self) -> tuple[bytes, Mapping[str, Value]]:
        world = self._physics()
        fine = float(world.get("pm2_5", 0))
        pm2_5 = _whole(fine)
        pm1 = min(_whole(float(world.get("pm1", fine * 0.7))), pm2_5)
        pm10 = max(_whole(float(world.get("pm10", fine * 1.2))), pm2_5)
        air = (pm1, pm2_5, pm10)
        # The factory column reads higher in dirty air; below 30 ug/m3 the two agree.
        factory = tuple(_whole(max(pm, 1.5 * pm - 15)) for pm in air)
        # Even the cleanest air has some of the finest particles.
        counts = tuple(_whole(pm10 * n + least) for n, least in _COUNTS)
        names = ("pm1", "pm2_5", "pm10")
        values: dict[str, Value] = dict(zip(names, air, strict=True))
        values |= {f"x-plantower-{n}_cf1": pm for n, pm in zip(names, factory, strict=True)}
        if self._model == "pms3003":
            return _words((*factory, *air, 0, 0, _RESERVED)), values

        sizes: tuple[str, ...] = ("n0_3", "n0_5", "n1_0", "n2_5", "n5_0", "n10")
        tenths_c = round(float(world.get("temperature", 20)) * 10)
        tenths_rh = min(max(round(float(world.get("humidity", 50)) * 10), 0), 1000)
        hcho = _whole(float(world.get("hcho", 0)))
        if self._model == "pms5003t":
            sizes, words = sizes[:4], (*counts[:4], tenths_c, tenths_rh, _VERSION << 8)
        elif self._model == "pms5003s":
            words = (*counts, hcho)
        elif self._model == "pms5003st":
            words = (*counts, hcho, tenths_c, tenths_rh, 0, _VERSION << 8)
        else:
            words = (*counts, _VERSION << 8)
        values |= {f"x-plantower-{n}": c for n, c in zip(sizes, counts, strict=False)}
        if self._model in ("pms5003t", "pms5003st"):
            values |= {"temperature": tenths_c / 10, "humidity": tenths_rh / 10}
        if self._model in ("pms5003s", "pms5003st"):
            values["hcho"] = hcho
        return _words((*factory, *air, *words)), values
