"""The Bluetooth radio: bleak's scanner and client, their errors in ours."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from bleak import BleakClient, BleakScanner
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData
from bleak.exc import (
    BleakCharacteristicNotFoundError,
    BleakDeviceNotFoundError,
    BleakError,
    BleakGATTProtocolError,
    BleakGATTProtocolErrorCode,
)
from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus
from dbus_fast.errors import DBusFastError

from device_drivers.errors import DeviceRefused, DeviceSilent, LinkLost
from device_drivers.kit.driver import Advert, GattDevice

UNREAD_MAX: Final = 1024
"""Adverts kept for a reader that is late; beyond that the oldest go and are counted."""
_RADIO_S: Final = 10.0
"""The longest that BlueZ may take to start or stop."""


class Scanner:
    """A running scan. Adverts that nobody asked for, by address or by format, leave no trace here."""

    def __init__(
        self, addresses: Iterable[str], services: Iterable[str] = (), companies: Iterable[int] = ()
    ) -> None:
        self._wanted = frozenset(address.upper() for address in addresses)
        self._services, self._companies = frozenset(services), frozenset(companies)
        self._unread: deque[Advert] = deque(maxlen=UNREAD_MAX)
        self._stirred = asyncio.Event()
        self.near: dict[str, BLEDevice] = {}
        """Devices with a wanted address that were heard: they can be connected to without another scan."""
        self.dropped = 0
        self.heard = 0
        """Adverts of anybody: a radio that hears strangers is well."""
        self.passed_over = 0
        """Of these, adverts that nobody asked for."""

    def hear(self, device: BLEDevice, data: AdvertisementData) -> None:
        self.heard += 1
        address = device.address.upper()
        if not (
            address in self._wanted
            or self._services & data.service_data.keys()
            or self._companies & data.manufacturer_data.keys()
        ):
            self.passed_over += 1
            return
        if address in self._wanted:
            self.near[address] = device
        self.dropped += len(self._unread) == UNREAD_MAX
        self._unread.append(
            Advert(
                address=address,
                rssi_dbm=data.rssi,
                manufacturer_data=dict(data.manufacturer_data),
                service_data=dict(data.service_data),
                at_s=time.monotonic(),
            )
        )
        self._stirred.set()

    async def next_advert(self, timeout_s: float) -> Advert:
        """Return the next advert, in order. Raises: DeviceSilent when none came in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._unread:
                    self._stirred.clear()
                    await self._stirred.wait()
        except TimeoutError:
            raise DeviceSilent(f"no advert of any device in {timeout_s:.3g} s") from None
        return self._unread.popleft()


@asynccontextmanager
async def open_scanner(
    addresses: Iterable[str],
    *,
    services: Iterable[str] = (),
    companies: Iterable[int] = (),
    adapter: str | None = None,
) -> AsyncIterator[Scanner]:
    """Scan for the devices with these addresses; `adapter` is BlueZ's name for the radio (`hci0`).

    Shape: adverts of whatever device are taken, too, that have data of these `services` (128-bit UUIDs in lower case)
    or of these `companies` (their numbers at the Bluetooth SIG).
    Raises: LinkLost when there is no Bluetooth, or it is switched off.
    """
    # Its debug messages hold the address of every device in reach, strangers' included.
    logging.getLogger("bleak").setLevel(logging.INFO)
    scanner = Scanner(addresses, services, companies)
    bluez: Any = {} if adapter is None else {"adapter": adapter}
    try:
        radio = BleakScanner(scanner.hear, bluez=bluez)
        async with asyncio.timeout(_RADIO_S):
            await radio.start()
    except (BleakError, OSError, EOFError) as error:
        raise LinkLost(f"Bluetooth {adapter or 'adapter'}: {error or 'no answer'}") from error
    try:
        yield scanner
    finally:
        try:
            async with asyncio.timeout(_RADIO_S):
                await radio.stop()
        except (BleakError, OSError, EOFError) as error:
            # The scan ends with our connection to BlueZ anyway.
            logging.getLogger(__name__).info("scan not stopped in order: %s", error)


async def power_cycle(adapter: str) -> None:
    """Switch a radio off and on: it may hang, or somebody may have switched it off.

    Raises: LinkLost when there is no such radio, or it stays off.
    """
    bus = MessageBus(bus_type=BusType.SYSTEM)
    try:
        async with asyncio.timeout(_RADIO_S):
            await bus.connect()
            for is_on in (False, True):
                reply = await bus.call(
                    Message(
                        destination="org.bluez",
                        path=f"/org/bluez/{adapter}",
                        interface="org.freedesktop.DBus.Properties",
                        member="Set",
                        signature="ssv",
                        body=["org.bluez.Adapter1", "Powered", Variant("b", is_on)],
                    )
                )
                if reply is None or reply.message_type is MessageType.ERROR:
                    reason = reply.body[0] if reply is not None and reply.body else "no answer"
                    raise LinkLost(f"Bluetooth {adapter}: {reason}")
    except (DBusFastError, OSError, EOFError) as error:
        raise LinkLost(f"Bluetooth {adapter}: {error or 'no answer'}") from error
    finally:
        bus.disconnect()


class _Connection:
    """A connected device."""

    def __init__(self, client: BleakClient, timeout_s: float) -> None:
        self._client, self._timeout_s = client, timeout_s

    async def read_characteristic(self, uuid: str) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_s):
                return bytes(await self._client.read_gatt_char(uuid))
        except TimeoutError:
            raise DeviceSilent(f"{uuid}: no answer in {self._timeout_s:g} s") from None
        except BleakGATTProtocolError as error:
            raise DeviceRefused(f"{uuid}: {error}", int(error.code)) from error
        except BleakCharacteristicNotFoundError as error:
            code = int(BleakGATTProtocolErrorCode.ATTRIBUTE_NOT_FOUND)
            raise DeviceRefused(f"{uuid}: the device has no such characteristic", code) from error
        except (BleakError, OSError, EOFError) as error:
            raise LinkLost(f"{uuid}: {error}") from error


@asynccontextmanager
async def open_gatt(
    address: str,
    *,
    adapter: str | None = None,
    timeout_s: float = 10.0,
    scanner: Scanner | None = None,
) -> AsyncIterator[GattDevice]:
    """Connect to a device; connecting, and each read, take at most `timeout_s`.

    Shape: while a `scanner` of this process runs it must be given, and the device be wanted by it: BlueZ allows
    one scan to a client.
    Raises: DeviceSilent when it is not in reach, LinkLost when there is no Bluetooth.
    """
    logging.getLogger("bleak").setLevel(logging.INFO)
    bluez: Any = {} if adapter is None else {"adapter": adapter}
    target: BLEDevice | str = address
    if scanner is not None:
        near = scanner.near.get(address.upper())
        if near is None:
            raise DeviceSilent(f"{address}: nothing was heard of it")
        target = near
    client = BleakClient(target, timeout=timeout_s, bluez=bluez)
    try:
        async with asyncio.timeout(timeout_s):
            await client.connect()
    except (TimeoutError, BleakDeviceNotFoundError) as error:
        raise DeviceSilent(f"{address}: not in reach within {timeout_s:g} s") from error
    except (BleakError, OSError, EOFError) as error:
        raise LinkLost(f"{address}: {error}") from error
    try:
        yield _Connection(client, timeout_s)
    finally:
        try:
            async with asyncio.timeout(_RADIO_S):
                await client.disconnect()
        except (BleakError, OSError, EOFError) as error:
            logging.getLogger(__name__).info("%s not disconnected in order: %s", address, error)
