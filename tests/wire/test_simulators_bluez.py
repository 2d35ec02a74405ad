"""The simulated BlueZ through unmodified bleak, and through bare D-Bus where bleak does not go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bleak import BleakClient, BleakScanner
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData
from bleak.exc import (
    BleakBluetoothNotAvailableError,
    BleakDBusError,
    BleakError,
    BleakGATTProtocolError,
)
from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from device_drivers.kit.driver import Value
from device_drivers.kit.twin import Truth
from simulators.bluez import Bluez
from simulators.errors import SimulatorError
from simulators.gate import Gate
from simulators.peripheral import Characteristic, Peripheral
from simulators.private_bus import PrivateBus
from simulators.pytest_plugin import BluezBench

DEADLINE_S = 10.0
BTHOME = "0000fcd2-0000-1000-8000-00805f9b34fb"
ENVIRONMENT = "0000181a-0000-1000-8000-00805f9b34fb"
TEMPERATURE = "00002a6e-0000-1000-8000-00805f9b34fb"
HUMIDITY = "00002a6f-0000-1000-8000-00805f9b34fb"
DESCRIPTION = "00002901-0000-1000-8000-00805f9b34fb"
HCI0 = "/org/bluez/hci0"
ADAPTER, DEVICE = "org.bluez.Adapter1", "org.bluez.Device1"


class Beacon:
    """Counts its distinct adverts in service data, and their square in manufacturer data."""

    def __init__(
        self, last_byte: int = 1, truth: Truth = lambda _: None, period_s: float = 0.15
    ) -> None:
        self.address = f"C4:7C:8D:00:00:{last_byte:02X}"
        self.name = f"bay {last_byte}"
        self.period_s = period_s
        self.truth = truth
        self.count = 0

    def advert(self) -> tuple[dict[int, bytes], dict[str, bytes]]:
        self.count += 1
        self.truth({"count": self.count})
        return {0xFFFF: (self.count**2).to_bytes(4)}, {BTHOME: self.count.to_bytes(2)}


def thermometer(**changes: Any) -> Peripheral:
    characteristic = Characteristic(
        TEMPERATURE,
        b"\xc4\x09",
        ("read", "write", "write-without-response", "notify"),
        notifications=[bytes([number]) for number in range(100)],
        notify_every_s=0.001,
        descriptors={DESCRIPTION: b"outside"},
    )
    locked = Characteristic(HUMIDITY, att_error=0x0E)
    return Peripheral(
        "C4:7C:8D:00:00:FF", "box", {ENVIRONMENT: [characteristic, locked]}, **changes
    )


@asynccontextmanager
async def simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *devices: Beacon | Peripheral, **options: Any
) -> AsyncIterator[tuple[Bluez, str]]:
    async with (
        PrivateBus(tmp_path / "dbus.log") as bus,
        Bluez(bus.address, devices, repeat_s=0.05, **options) as bluez,
        asyncio.timeout(DEADLINE_S),
    ):
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        yield bluez, bus.address


class Ear:
    """A scanner's callback that keeps what it heard and lets a test wait for more."""

    def __init__(self) -> None:
        self.heard: list[tuple[BLEDevice, AdvertisementData]] = []
        self._more = asyncio.Event()

    def __call__(self, device: BLEDevice, advert: AdvertisementData) -> None:
        self.heard.append((device, advert))
        self._more.set()

    async def until(self, enough: Callable[[], bool]) -> None:
        while not enough():
            self._more.clear()
            await self._more.wait()

    def counts(self, address: str) -> list[int]:
        """Return the distinct adverts of a beacon, in the order they came."""
        counts = [
            int.from_bytes(advert.service_data[BTHOME])
            for device, advert in self.heard
            if device.address == address
        ]
        return [count for index, count in enumerate(counts) if counts[:index][-1:] != [count]]


class Caller:
    """A bare D-Bus client."""

    def __init__(self, bus: MessageBus) -> None:
        self.bus = bus

    async def __call__(
        self, path: str, interface: str, member: str, signature: str = "", *body: Any
    ) -> list[Any]:
        """Return the reply's body. Raises: RuntimeError with the error's name."""
        reply = await self.bus.call(
            Message(
                destination="org.bluez",
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=list(body),
            )
        )
        assert reply is not None
        if reply.message_type is MessageType.ERROR:
            raise RuntimeError(reply.error_name, *reply.body)
        return reply.body

    async def get(self, path: str, interface: str, name: str) -> Any:
        properties = "org.freedesktop.DBus.Properties"
        return (await self(path, properties, "Get", "ss", interface, name))[0].value


@asynccontextmanager
async def calling(address: str) -> AsyncIterator[Caller]:
    bus = await MessageBus(bus_address=address).connect()
    try:
        yield Caller(bus)
    finally:
        bus.disconnect()


async def found(name: str) -> BLEDevice:
    device = await BleakScanner.find_device_by_name(name, timeout=DEADLINE_S)
    assert device is not None
    return device


async def test_a_scanner_hears_every_distinct_advert_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beacons, ear = [Beacon(1), Beacon(2), Beacon(3)], Ear()
    async with simulated(tmp_path, monkeypatch, *beacons):
        async with BleakScanner(ear):
            await ear.until(lambda: all(beacon.count >= 5 for beacon in beacons))
            await ear.until(lambda: all(ear.counts(b.address)[-1:] == [b.count] for b in beacons))
            for beacon in beacons:
                assert ear.counts(beacon.address) == list(range(1, beacon.count + 1))
        said = [beacon.count for beacon in beacons]
        await asyncio.sleep(0.3)  # time in which they would have gone on
        assert [beacon.count for beacon in beacons] == said, "nobody listens, nobody is told"
    device, advert = next(pair for pair in ear.heard if pair[0].address == beacons[0].address)
    assert (device.name, advert.local_name) == ("bay 1", "bay 1")
    assert advert.manufacturer_data[0xFFFF] == (1).to_bytes(4)
    assert -90 < advert.rssi < -40
    first = [pair[1].service_data[BTHOME] for pair in ear.heard if pair[0].name == "bay 1"]
    assert all(first.count(number.to_bytes(2)) >= 2 for number in range(1, 5))


async def test_a_new_scanner_hears_nothing_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beacon = Beacon(period_s=0.4)
    async with simulated(tmp_path, monkeypatch, beacon):
        last = 0
        for _ in range(3):
            ear = Ear()
            async with BleakScanner(ear):
                await ear.until(lambda ear=ear: len(ear.heard) >= 3)  # type: ignore[misc]  # a bound name
            assert ear.counts(beacon.address)[0] == last + 1
            last = beacon.count


async def test_a_closed_gate_keeps_twins_off_the_air(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, ear = Gate(is_open=False), Ear()
    told: list[Mapping[str, Value]] = []
    beacon = Beacon(truth=gate.truth(told.append))
    async with simulated(tmp_path, monkeypatch, beacon, gate=gate) as (bluez, _), BleakScanner(ear):
        await asyncio.sleep(0.3)
        assert ear.heard == []
        gate.open()
        await ear.until(lambda: beacon.count == 3)
        gate.close()
        await bluez.quiet()
        await ear.until(lambda: len(ear.counts(beacon.address)) == 3)
        count = len(ear.heard)
        await asyncio.sleep(0.3)
        assert len(ear.heard) - count <= 1
        assert told == [{"count": 1}, {"count": 2}, {"count": 3}]
        gate.open()
        await ear.until(lambda: ear.counts(beacon.address) == [1, 2, 3, 4])


async def test_connecting_reading_writing_and_being_told_of_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = thermometer()
    async with simulated(tmp_path, monkeypatch, box, Beacon()):
        device = await found("box")
        gone = asyncio.Event()
        async with BleakClient(device, lambda _: gone.set()) as client:
            assert [service.uuid for service in client.services] == [ENVIRONMENT]
            characteristic = client.services.get_characteristic(TEMPERATURE)
            assert characteristic is not None
            assert set(characteristic.properties) == {
                *("read", "write", "write-without-response", "notify")
            }
            assert await client.read_gatt_char(TEMPERATURE) == b"\xc4\x09"
            (descriptor,) = characteristic.descriptors
            assert descriptor.uuid == DESCRIPTION
            assert await client.read_gatt_descriptor(descriptor.handle) == b"outside"
            await client.write_gatt_char(TEMPERATURE, b"\x01\x02", response=True)
            assert await client.read_gatt_char(TEMPERATURE) == b"\x01\x02"
            assert box.services[ENVIRONMENT][0].value == b"\x01\x02"
            with pytest.raises(BleakGATTProtocolError) as refused:
                await client.read_gatt_char(HUMIDITY)
            assert refused.value.code == 0x0E
            with pytest.raises(BleakError):
                await client.write_gatt_char(HUMIDITY, b"\0", response=True)
        await gone.wait()
        async with BleakClient(device) as client:
            assert await client.read_gatt_char(TEMPERATURE) == b"\x01\x02"


@pytest.mark.parametrize(
    ("code", "arrives_as"), [(0x02, 0x02), (0x06, 0x06), (0x08, 0x08), (0x0D, 0x0D), (0x81, 0x81)]
)
async def test_att_errors_arrive_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, arrives_as: int
) -> None:
    box = Peripheral(
        "C4:7C:8D:00:00:FE", "box", {ENVIRONMENT: [Characteristic(TEMPERATURE, att_error=code)]}
    )
    async with simulated(tmp_path, monkeypatch, box), BleakClient(await found("box")) as client:
        with pytest.raises(BleakGATTProtocolError) as refused:
            await client.read_gatt_char(TEMPERATURE)
        assert refused.value.code == arrives_as


@pytest.mark.parametrize("use_start_notify", [True, False])
async def test_notifications_come_complete_and_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, use_start_notify: bool
) -> None:
    async with (
        simulated(tmp_path, monkeypatch, thermometer()),
        BleakClient(await found("box")) as client,
    ):
        for _ in range(2):
            heard: list[int] = []
            enough = asyncio.Event()

            def hear(_: Any, data: bytearray, heard: Any = heard, enough: Any = enough) -> None:
                heard.append(data[0])
                if len(heard) >= 150:
                    enough.set()

            await client.start_notify(
                TEMPERATURE, hear, bluez={"use_start_notify": use_start_notify}
            )
            await enough.wait()
            await client.stop_notify(TEMPERATURE)
            assert heard[:150] == [number % 100 for number in range(150)]
            count = len(heard)
            await asyncio.sleep(0.05)
            assert len(heard) == count


async def test_pairing_and_forgetting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with simulated(tmp_path, monkeypatch, thermometer()) as (_, address):
        device = await found("box")
        path = device.details["path"]
        async with calling(address) as call:
            async with BleakClient(device, pair=True) as client:
                for name in ("Paired", "Bonded", "Trusted", "Connected", "ServicesResolved"):
                    assert await call.get(path, DEVICE, name), name
                await client.unpair()
            objects = await call("/", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
            assert list(objects[0]) == [HCI0]
        async with BleakClient(await found("box")) as client:
            assert await client.read_gatt_char(TEMPERATURE) == b"\xc4\x09"


async def test_a_beacon_cannot_be_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulated(tmp_path, monkeypatch, Beacon()):
        device = await found("bay 1")
        with pytest.raises(BleakDBusError, match="NotAvailable"):
            await BleakClient(device).connect()


async def test_an_adapter_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with simulated(tmp_path, monkeypatch, thermometer()) as (_, address):
        gone = asyncio.Event()
        client = BleakClient(await found("box"), lambda _: gone.set())
        await client.connect()
        async with calling(address) as call:
            off = Variant("b", False)
            await call(
                HCI0, "org.freedesktop.DBus.Properties", "Set", "ssv", ADAPTER, "Powered", off
            )
            await gone.wait()
            with pytest.raises(RuntimeError, match=r"org\.bluez\.Error\.NotReady"):
                await call(HCI0, ADAPTER, "StartDiscovery")
        with pytest.raises(BleakBluetoothNotAvailableError):
            await BleakScanner().start()
        await client.disconnect()


async def test_a_client_that_vanishes_stops_its_discovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beacon = Beacon(period_s=0.1)
    async with simulated(tmp_path, monkeypatch, beacon) as (_, address):
        async with calling(address) as observer:
            async with calling(address) as killed:
                await killed(HCI0, ADAPTER, "StartDiscovery")
                assert await observer.get(HCI0, ADAPTER, "Discovering") is True
                with pytest.raises(RuntimeError, match="InProgress"):
                    await killed(HCI0, ADAPTER, "StartDiscovery")
                with pytest.raises(RuntimeError, match="No discovery started"):
                    await observer(HCI0, ADAPTER, "StopDiscovery")
            while await observer.get(HCI0, ADAPTER, "Discovering"):  # noqa: ASYNC110 - asks another process
                await asyncio.sleep(0.01)
        said = beacon.count
        await asyncio.sleep(0.3)
        assert beacon.count == said


async def test_a_filter_hides_devices_and_each_client_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ear = Ear()
    async with simulated(tmp_path, monkeypatch, Beacon(1), thermometer(period_s=0.1)):
        async with BleakScanner(ear, service_uuids=[ENVIRONMENT]):
            await ear.until(lambda: len(ear.heard) > 5)
        assert {device.name for device, _ in ear.heard} == {"box"}
        async with BleakScanner(ear, bluez={"filters": {"Pattern": "bay"}}):
            await ear.until(lambda: ear.heard[-1][0].name == "bay 1")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ((HCI0 + "/dev_00", DEVICE, "Connect"), "org.freedesktop.DBus.Error.UnknownObject"),
        ((HCI0, ADAPTER, "Dance"), "org.freedesktop.DBus.Error.UnknownMethod"),
        ((HCI0, ADAPTER, "StartDiscovery", "s", "x"), "org.freedesktop.DBus.Error.UnknownMethod"),
        ((HCI0, ADAPTER, "RemoveDevice", "o", HCI0), "org.bluez.Error.DoesNotExist"),
        (
            (HCI0, ADAPTER, "SetDiscoveryFilter", "a{sv}", {"Colour": Variant("s", "red")}),
            "org.bluez.Error.InvalidArguments",
        ),
        (
            (HCI0, "org.freedesktop.DBus.Properties", "Get", "ss", ADAPTER, "Colour"),
            "org.freedesktop.DBus.Error.InvalidArgs",
        ),
        (
            (
                *(HCI0, "org.freedesktop.DBus.Properties", "Set", "ssv", ADAPTER, "Address"),
                Variant("s", "x"),
            ),
            "org.freedesktop.DBus.Error.PropertyReadOnly",
        ),
    ],
)
async def test_wrong_calls_get_bluetoothds_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[Any, ...], error: str
) -> None:
    async with simulated(tmp_path, monkeypatch) as (_, address), calling(address) as caller:
        with pytest.raises(RuntimeError) as refused:
            await caller(*call)
        assert refused.value.args[0] == error


async def test_introspection_tells_the_whole_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulated(tmp_path, monkeypatch, thermometer()) as (_, address):
        device = await found("box")
        async with BleakClient(device), calling(address) as call:
            seen: dict[str, set[str]] = {}
            todo = ["/"]
            while todo:
                path = todo.pop()
                (xml,) = await call(path, "org.freedesktop.DBus.Introspectable", "Introspect")
                node = ElementTree.fromstring(xml)  # noqa: S314 - our own document
                seen[path] = {interface.attrib["name"] for interface in node.iter("interface")}
                todo += [
                    f"{path.rstrip('/')}/{child.attrib['name']}" for child in node.findall("node")
                ]
            (objects,) = await call("/", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
            for path, interfaces in objects.items():
                assert set(interfaces) <= seen[path]
                properties = "org.freedesktop.DBus.Properties"
                for interface, values in interfaces.items():
                    (again,) = await call(path, properties, "GetAll", "s", interface)
                    assert again == values
            assert len(objects) == 6  # adapter, device, service, 2 characteristics, descriptor
            proxy = await call.bus.introspect("org.bluez", HCI0)
            assert ADAPTER in {interface.name for interface in proxy.interfaces}


async def test_two_devices_cannot_have_one_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulated(tmp_path, monkeypatch, Beacon(1)) as (bluez, _):
        with pytest.raises(SimulatorError, match="two devices have the address"):
            bluez.add(Beacon(1))


async def test_a_missing_daemon_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SimulatorError, match="install the package dbus-daemon"):
        async with PrivateBus(tmp_path / "dbus.log"):
            pass


async def test_the_fixture_is_found_by_clients(bluez: BluezBench) -> None:
    beacon = Beacon()
    bluez.add(beacon)
    ear = Ear()
    async with BleakScanner(ear), asyncio.timeout(DEADLINE_S):
        await ear.until(lambda: len(ear.counts(beacon.address)) >= 3)
