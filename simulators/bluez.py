"""A simulated BlueZ: `org.bluez` on a private D-Bus, as unmodified clients (bleak) know it.

It hosts `AdvertTwin`s, which advertise, and `Peripheral`s, which can also be connected to. Behaviour
follows bluetoothd 5.6x as its clients see it.

Source: https://github.com/bluez/bluez/tree/master/doc (org.bluez.Adapter, .Device, .GattService,
.GattCharacteristic, .GattDescriptor); errors of ATT: src/gatt-client.c, create_gatt_dbus_error().
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeAlias

from dbus_fast import DBusError, ErrorType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from device_drivers.kit.twin import AdvertTwin
from simulators.bluez_interfaces import (
    ADAPTER,
    CHARACTERISTIC,
    DESCRIPTOR,
    DEVICE,
    FILTERS,
    INTROSPECTABLE,
    METHODS,
    OBJECT_MANAGER,
    PROPERTIES,
    SERVICE,
    WRITABLE,
    introspection,
)
from simulators.errors import SimulatorError
from simulators.gate import Gate
from simulators.line import Endpoint, LineTasks
from simulators.peripheral import Advertisement, Characteristic, Peripheral

ADAPTER_PATH: Final = "/org/bluez/hci0"
MTU: Final = 185
SEEN_TWICE: Final = 2
"""Times a distinct advert is on the air at least: the first may meet a client still starting up."""

Results: TypeAlias = list[Any]


@dataclass(frozen=True)
class Call:
    """A method call: on which object, by which client, with what."""

    path: str
    client: str
    arguments: list[Any]


Handler: TypeAlias = Callable[[Call], Awaitable[Results]]


class Advertiser(Protocol):
    """What twins and peripherals have in common."""

    address: str
    name: str
    period_s: float

    def advert(self) -> Advertisement: ...


class Subscription:
    """A running notification of one characteristic to one client."""

    def __init__(self, task: asyncio.Task[None], end: socket.socket | None) -> None:
        self._task, self._end = task, end

    def stop(self) -> None:
        self._task.cancel()
        if self._end is not None:
            self._end.close()


def refusal(name: str, text: str) -> DBusError:
    """Return one of bluetoothd's errors."""
    return DBusError(f"org.bluez.Error.{name}", text)


def att_refusal(code: int) -> DBusError:
    """Return what bluetoothd makes of an ATT error."""
    known = {
        0x02: ("NotPermitted", "Read not permitted"),
        0x03: ("NotPermitted", "Write not permitted"),
        0x05: ("NotPermitted", "Not paired"),
        0x06: ("NotSupported", "Operation is not supported"),
        0x07: ("InvalidArguments", "Invalid offset"),
        0x08: ("NotAuthorized", "Operation Not Authorized"),
        0x0C: ("NotPermitted", "Not paired"),
        0x0D: ("InvalidArguments", "Invalid Length"),
        0x0F: ("NotPermitted", "Not paired"),
    }
    name, text = known.get(code, ("Failed", f"Operation failed with ATT error: 0x{code:02x}"))
    return refusal(name, text)


def device_path(address: str) -> str:
    return f"{ADAPTER_PATH}/dev_{address.upper().replace(':', '_')}"


class Bluez:
    """Owns `org.bluez` on the bus at `bus_address`, with one adapter, hci0.

    A distinct advert is asked of a twin only while the gate is open and a client's discovery would
    hear it; it is then on the air every `repeat_s` until the next one, at least twice.
    """

    def __init__(
        self,
        bus_address: str,
        devices: Iterable[AdvertTwin | Peripheral] = (),
        *,
        gate: Gate | None = None,
        repeat_s: float = 0.1,
    ) -> None:
        """Prepare with what is in reach from the start."""
        self._bus_address, self._gate, self._repeat_s = bus_address, gate or Gate(), repeat_s
        self._gate.watch(self._stir)
        self._stirred = asyncio.Event()
        self._first_devices = tuple(devices)
        self._advertisers: dict[str, Advertiser] = {}
        self._fresh: set[str] = set()  # devices whose advert was not yet on the air twice
        self._filters: dict[str, dict[str, Any]] = {}  # by client
        self._discovering: set[str] = set()  # clients
        self._audience = 0  # counts the times that the last client stopped listening
        self._attributes: dict[str, Characteristic] = {}  # by path
        self._subscriptions: dict[tuple[str, str], Subscription] = {}  # by path and client
        self._running: set[asyncio.Task[None]] = set()
        self._tasks = LineTasks()
        self._tree: dict[str, dict[str, dict[str, Variant]]] = {
            "/": {OBJECT_MANAGER: {}},
            "/org": {},
            "/org/bluez": {},
            ADAPTER_PATH: {
                ADAPTER: {
                    "Address": Variant("s", "00:11:22:33:44:55"),
                    "AddressType": Variant("s", "public"),
                    "Name": Variant("s", "onestreet"),
                    "Alias": Variant("s", "onestreet"),
                    "Class": Variant("u", 0),
                    "Powered": Variant("b", True),
                    "Discoverable": Variant("b", False),
                    "DiscoverableTimeout": Variant("u", 180),
                    "Pairable": Variant("b", True),
                    "PairableTimeout": Variant("u", 0),
                    "Discovering": Variant("b", False),
                    "UUIDs": Variant("as", []),
                    "Modalias": Variant("s", "usb:v1D6Bp0246d0542"),
                    "Roles": Variant("as", ["central", "peripheral"]),
                }
            },
        }
        self._handlers: dict[tuple[str, str], Handler] = {
            (INTROSPECTABLE, "Introspect"): self._introspect,
            (OBJECT_MANAGER, "GetManagedObjects"): self._get_managed_objects,
            (PROPERTIES, "Get"): self._get,
            (PROPERTIES, "GetAll"): self._get_all,
            (PROPERTIES, "Set"): self._set,
            (ADAPTER, "SetDiscoveryFilter"): self._set_discovery_filter,
            (ADAPTER, "GetDiscoveryFilters"): self._get_discovery_filters,
            (ADAPTER, "StartDiscovery"): self._start_discovery,
            (ADAPTER, "StopDiscovery"): self._stop_discovery,
            (ADAPTER, "RemoveDevice"): self._remove_device,
            (DEVICE, "Connect"): self._connect,
            (DEVICE, "Disconnect"): self._disconnect,
            (DEVICE, "Pair"): self._pair,
            (CHARACTERISTIC, "ReadValue"): self._read_value,
            (CHARACTERISTIC, "WriteValue"): self._write_value,
            (CHARACTERISTIC, "StartNotify"): self._start_notify,
            (CHARACTERISTIC, "StopNotify"): self._stop_notify,
            (CHARACTERISTIC, "AcquireNotify"): self._acquire_notify,
            (CHARACTERISTIC, "AcquireWrite"): self._acquire_write,
            (DESCRIPTOR, "ReadValue"): self._read_descriptor,
            (DESCRIPTOR, "WriteValue"): self._write_descriptor,
        }

    @property
    def endpoint(self) -> Endpoint:
        return {"kind": "ble", "dbus": self._bus_address}

    async def __aenter__(self) -> Self:
        self._bus = MessageBus(bus_address=self._bus_address, negotiate_unix_fd=True)
        await self._bus.connect()
        try:
            await self._bus.call(
                Message(
                    destination="org.freedesktop.DBus",
                    path="/org/freedesktop/DBus",
                    interface="org.freedesktop.DBus",
                    member="AddMatch",
                    signature="s",
                    body=["type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged'"],
                )
            )
            await self._tasks.__aenter__()
            self._bus.add_message_handler(self._take)
            await self._bus.request_name("org.bluez")
        except BaseException:
            self._bus.disconnect()
            raise
        for device in self._first_devices:
            self.add(device)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bus.remove_message_handler(self._take)
        self._end_subscriptions()
        for task in tuple(self._running):
            task.cancel()
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            self._bus.disconnect()
            await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]  # its omission

    def add(self, device: AdvertTwin | Peripheral) -> None:
        """Bring a device into reach. Raises: SimulatorError when its address is taken."""
        path = device_path(device.address)
        if path in self._advertisers:
            raise SimulatorError(f"two devices have the address {device.address}")
        self._advertisers[path] = device
        self._start(self._advertise(path, device))

    async def quiet(self) -> None:
        while self._fresh:
            await self._stirred.wait()

    # On the air

    async def _advertise(self, path: str, device: Advertiser) -> None:
        loop = asyncio.get_running_loop()
        signal_noise = random.Random(device.address)
        level_dbm = signal_noise.randint(-80, -50)
        while True:
            while not self._is_heard(path, device):
                await self._stirred.wait()
            self._fresh.add(path)
            manufacturer_data, service_data = device.advert()
            next_s = loop.time() + device.period_s
            times = 0
            audience = self._audience
            # Whoever begins to listen later must not hear this one again: it would be a new
            # reading for a client that was started anew.
            while self._audience == audience and (
                times < SEEN_TWICE
                or (self._is_heard(path, device) and loop.time() + self._repeat_s <= next_s)
            ):
                await self._signal_advert(
                    path,
                    device,
                    {
                        "RSSI": Variant("n", level_dbm + signal_noise.randint(-4, 4)),
                        "ManufacturerData": Variant(
                            "a{qv}", {k: Variant("ay", v) for k, v in manufacturer_data.items()}
                        ),
                        "ServiceData": Variant(
                            "a{sv}", {k: Variant("ay", v) for k, v in service_data.items()}
                        ),
                    },
                )
                times += 1
                if times == SEEN_TWICE:
                    self._settle(path)
                await asyncio.sleep(self._repeat_s)
            self._settle(path)
            await asyncio.sleep(max(0.0, next_s - loop.time()))

    def _settle(self, path: str) -> None:
        if path in self._fresh:
            self._fresh.discard(path)
            self._stir()

    def _is_heard(self, path: str, device: Advertiser) -> bool:
        """Say whether an advert of the device would reach a client."""
        if isinstance(device, Peripheral):
            if self._is_set(path, DEVICE, "Connected"):
                return False  # a connected peripheral does not advertise
        elif not self._gate.is_open:
            return False
        return any(_matches(self._filters.get(client, {}), device) for client in self._discovering)

    async def _signal_advert(
        self, path: str, device: Advertiser, properties: dict[str, Variant]
    ) -> None:
        if path in self._tree:
            await self._change(path, DEVICE, properties)
            return
        names = {"Alias": Variant("s", device.name or device.address.replace(":", "-"))}
        if device.name:
            names["Name"] = Variant("s", device.name)
        await self._appear(
            path,
            DEVICE,
            {
                "Address": Variant("s", device.address.upper()),
                "AddressType": Variant("s", "random"),
                **names,
                "Paired": Variant("b", False),
                "Bonded": Variant("b", False),
                "Trusted": Variant("b", False),
                "Blocked": Variant("b", False),
                "LegacyPairing": Variant("b", False),
                "Connected": Variant("b", False),
                "ServicesResolved": Variant("b", False),
                "UUIDs": Variant("as", _services_of(device)),
                "Adapter": Variant("o", ADAPTER_PATH),
                **properties,
            },
        )

    # Messages

    def _take(self, message: Message) -> bool:
        if message.message_type is MessageType.SIGNAL and message.member == "NameOwnerChanged":
            name, _, new_owner = message.body
            if not new_owner:
                self._start(self._client_left(name))
            return False
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        if message.interface == "org.freedesktop.DBus.Peer":
            return False  # dbus-fast answers these
        self._start(self._serve(message))
        return True

    async def _serve(self, message: Message) -> None:
        try:
            results, signature = await self._call(message)
        except DBusError as refused:
            reply = Message.new_error(message, refused.type, refused.text)
            ends: list[socket.socket] = []
        else:
            ends = [part for part in results if isinstance(part, socket.socket)]
            body = [ends.index(part) if part in ends else part for part in results]
            reply = Message.new_method_return(
                message, signature, body, unix_fds=[end.fileno() for end in ends]
            )
        try:
            await self._bus.send(reply)
        finally:
            for end in ends:
                end.close()  # the client has its own copy now

    async def _call(self, message: Message) -> tuple[Results, str]:
        """Carry the call out. Raises: DBusError."""
        assert message.path is not None
        assert message.member is not None  # dbus-fast refuses a call without them
        interfaces = self._tree.get(message.path)
        if interfaces is None:
            raise DBusError(
                ErrorType.UNKNOWN_OBJECT,
                f'Method "{message.member}" with signature "{message.signature}" on interface '
                f'"{message.interface}" doesn\'t exist',
            )
        offered = (INTROSPECTABLE, PROPERTIES, *interfaces)
        for interface in (message.interface,) if message.interface else offered:
            arguments, results = METHODS.get(interface, {}).get(message.member, (None, ""))
            if interface in offered and arguments == message.signature:
                assert message.sender is not None  # the daemon fills it in
                call = Call(message.path, message.sender, message.body)
                return await self._handlers[interface, message.member](call), results
        raise DBusError(
            ErrorType.UNKNOWN_METHOD,
            f'Method "{message.member}" with signature "{message.signature}" on interface '
            f'"{message.interface}" doesn\'t exist',
        )

    async def _client_left(self, client: str) -> None:
        self._filters.pop(client, None)
        await self._leave_discovery(client)
        for path, subscriber in tuple(self._subscriptions):
            if subscriber == client:
                await self._unsubscribe(path, client)

    # org.freedesktop.DBus

    async def _introspect(self, call: Call) -> Results:
        offered = {INTROSPECTABLE: {}, PROPERTIES: {}, **self._tree[call.path]}
        signatures = {
            interface: {name: value.signature for name, value in properties.items()}
            for interface, properties in offered.items()
        }
        stem = call.path.rstrip("/") + "/"
        children = {
            other[len(stem) :].split("/")[0]
            for other in self._tree
            if other.startswith(stem) and other != stem
        }
        return [introspection(signatures, sorted(children))]

    async def _get_managed_objects(self, _: Call) -> Results:
        return [{path: interfaces for path, interfaces in self._tree.items() if _is_managed(path)}]

    async def _get(self, call: Call) -> Results:
        interface, name = call.arguments
        try:
            return [self._interface(call, interface)[name]]
        except KeyError:
            raise DBusError(ErrorType.INVALID_ARGS, f"No such property '{name}'") from None

    async def _get_all(self, call: Call) -> Results:
        return [self._interface(call, call.arguments[0])]

    async def _set(self, call: Call) -> Results:
        interface, name, value = call.arguments
        current = self._interface(call, interface).get(name)
        if current is None:
            raise DBusError(ErrorType.INVALID_ARGS, f"No such property '{name}'")
        if (interface, name) not in WRITABLE:
            raise DBusError(ErrorType.PROPERTY_READ_ONLY, f"Property '{name}' is read-only")
        if value.signature != current.signature:
            raise refusal("InvalidArguments", "Invalid arguments in method call")
        await self._change(call.path, interface, {name: value})
        if (interface, name, value.value) == (ADAPTER, "Powered", False):
            await self._power_off()
        return []

    def _interface(self, call: Call, interface: str) -> dict[str, Variant]:
        try:
            return self._tree[call.path][interface]
        except KeyError:
            raise DBusError(ErrorType.INVALID_ARGS, f"No such interface '{interface}'") from None

    # org.bluez.Adapter1

    async def _set_discovery_filter(self, call: Call) -> Results:
        wanted: dict[str, Variant] = call.arguments[0]
        for key, value in wanted.items():
            if FILTERS.get(key) != value.signature:
                raise refusal("InvalidArguments", "Invalid arguments in method call")
        self._filters[call.client] = {key: value.value for key, value in wanted.items()}
        self._stir()
        return []

    async def _get_discovery_filters(self, _: Call) -> Results:
        return [list(FILTERS)]

    async def _start_discovery(self, call: Call) -> Results:
        self._require_power()
        client = call.client
        if client in self._discovering:
            raise refusal("InProgress", "Operation already in progress")
        self._discovering.add(client)
        self._stir()
        if len(self._discovering) == 1:
            await self._change(ADAPTER_PATH, ADAPTER, {"Discovering": Variant("b", True)})
        return []

    async def _stop_discovery(self, call: Call) -> Results:
        self._require_power()
        if call.client not in self._discovering:
            raise refusal("Failed", "No discovery started")
        await self._leave_discovery(call.client)
        return []

    async def _leave_discovery(self, client: str) -> None:
        if client not in self._discovering:
            return
        self._discovering.discard(client)
        self._stir()
        if self._discovering:
            return
        self._audience += 1
        for path in self._advertisers:
            if path in self._tree:
                # Forgotten at once, not as bluetoothd does with the device half a minute later:
                # what a later client finds here must not pass for an advert just heard.
                for name in ("ManufacturerData", "ServiceData"):
                    self._tree[path][DEVICE].pop(name, None)
                await self._change(path, DEVICE, {}, invalidated=["RSSI"])
        await self._change(ADAPTER_PATH, ADAPTER, {"Discovering": Variant("b", False)})

    async def _remove_device(self, call: Call) -> Results:
        path = call.arguments[0]
        if DEVICE not in self._tree.get(path, {}):
            raise refusal("DoesNotExist", "Does Not Exist")
        await self._drop_connection(path)
        for gone in [other for other in self._tree if other.startswith(f"{path}/")] + [path]:
            interfaces = list(self._tree.pop(gone))
            self._attributes.pop(gone, None)
            await self._signal("/", OBJECT_MANAGER, "InterfacesRemoved", "oas", [gone, interfaces])
        return []

    async def _power_off(self) -> None:
        for path in self._advertisers:
            if path in self._tree:
                await self._drop_connection(path)
        for client in tuple(self._discovering):
            await self._leave_discovery(client)

    def _require_power(self) -> None:
        if not self._is_set(ADAPTER_PATH, ADAPTER, "Powered"):
            raise refusal("NotReady", "Resource Not Ready")

    # org.bluez.Device1

    async def _connect(self, call: Call) -> Results:
        self._require_power()
        path = call.path
        if self._is_set(path, DEVICE, "Connected"):
            raise refusal("AlreadyConnected", "Already Connected")
        await self._make_connection(path)
        return []

    async def _pair(self, call: Call) -> Results:
        self._require_power()
        path = call.path
        if self._is_set(path, DEVICE, "Paired"):
            raise refusal("AlreadyExists", "Already Exists")
        if not self._is_set(path, DEVICE, "Connected"):
            await self._make_connection(path)
        await self._change(
            path, DEVICE, {"Paired": Variant("b", True), "Bonded": Variant("b", True)}
        )
        return []

    async def _make_connection(self, path: str) -> None:
        device = self._advertisers[path]
        if not isinstance(device, Peripheral):
            raise refusal("NotAvailable", "Operation currently not available")
        await self._change(path, DEVICE, {"Connected": Variant("b", True)})
        handle = 0
        for uuid, characteristics in device.services.items():
            handle += 1
            service = f"{path}/service{handle:04x}"
            await self._appear(
                service,
                SERVICE,
                {
                    "UUID": Variant("s", uuid),
                    "Device": Variant("o", path),
                    "Primary": Variant("b", True),
                    "Includes": Variant("ao", []),
                },
            )
            for characteristic in characteristics:
                handle = await self._resolve(service, characteristic, handle)
        await self._change(path, DEVICE, {"ServicesResolved": Variant("b", True)})

    async def _resolve(self, service: str, characteristic: Characteristic, handle: int) -> int:
        """Show a characteristic and its descriptors; return the last handle used."""
        handle += 1
        path = f"{service}/char{handle:04x}"
        handle += 1  # the value has a handle of its own
        self._attributes[path] = characteristic
        acquirable = {
            name: Variant("b", False)
            for name, flag in (
                ("NotifyAcquired", "notify"),
                ("WriteAcquired", "write-without-response"),
            )
            if flag in characteristic.flags
        }
        await self._appear(
            path,
            CHARACTERISTIC,
            {
                "UUID": Variant("s", characteristic.uuid),
                "Service": Variant("o", service),
                "Value": Variant("ay", b""),
                "Notifying": Variant("b", False),
                "Flags": Variant("as", list(characteristic.flags)),
                "MTU": Variant("q", MTU),
                **acquirable,
            },
        )
        for uuid in characteristic.descriptors:
            handle += 1
            await self._appear(
                f"{path}/desc{handle:04x}",
                DESCRIPTOR,
                {
                    "UUID": Variant("s", uuid),
                    "Characteristic": Variant("o", path),
                    "Value": Variant("ay", b""),
                },
            )
        return handle

    async def _disconnect(self, call: Call) -> Results:
        if not self._is_set(call.path, DEVICE, "Connected"):
            raise refusal("NotConnected", "Not Connected")
        await self._drop_connection(call.path)
        return []

    async def _drop_connection(self, path: str) -> None:
        """End the connection of a device, if there is one; also what a radio failure looks like."""
        if not self._is_set(path, DEVICE, "Connected"):
            return
        for attribute, client in tuple(self._subscriptions):
            if attribute.startswith(f"{path}/"):
                await self._unsubscribe(attribute, client)
        await self._change(
            path,
            DEVICE,
            {"Connected": Variant("b", False), "ServicesResolved": Variant("b", False)},
        )
        self._stir()

    # org.bluez.GattCharacteristic1 and GattDescriptor1

    async def _read_value(self, call: Call) -> Results:
        characteristic = self._attribute(call.path)
        if characteristic.att_error is not None:
            raise att_refusal(characteristic.att_error)
        if "read" not in characteristic.flags:
            raise att_refusal(0x02)
        value = _from_offset(characteristic.value, call.arguments[0])
        # bluetoothd caches what was read, and so signals a read like a notification.
        await self._change(call.path, CHARACTERISTIC, {"Value": Variant("ay", value)})
        return [value]

    async def _write_value(self, call: Call) -> Results:
        characteristic = self._attribute(call.path)
        if not {"write", "write-without-response"} & set(characteristic.flags):
            raise refusal("NotSupported", "Operation is not supported")
        if characteristic.att_error is not None:
            raise att_refusal(characteristic.att_error)
        characteristic.value = bytes(call.arguments[0])
        return []

    async def _start_notify(self, call: Call) -> Results:
        characteristic, path, client = self._attribute(call.path), call.path, call.client
        if "notify" not in characteristic.flags:
            raise refusal("NotSupported", "Operation is not supported")
        if self._is_set(path, CHARACTERISTIC, "NotifyAcquired"):
            raise refusal("NotPermitted", "Notify acquired")
        if (path, client) in self._subscriptions:
            return []

        async def tell(value: bytes) -> None:
            await self._change(path, CHARACTERISTIC, {"Value": Variant("ay", value)})

        feed = self._start(self._notify(characteristic, tell))
        self._subscriptions[path, client] = Subscription(feed, None)
        await self._change(path, CHARACTERISTIC, {"Notifying": Variant("b", True)})
        return []

    async def _stop_notify(self, call: Call) -> Results:
        self._attribute(call.path)
        if (call.path, call.client) not in self._subscriptions:
            raise refusal("Failed", "No notify session started")
        await self._unsubscribe(call.path, call.client)
        return []

    async def _acquire_notify(self, call: Call) -> Results:
        characteristic, path, client = self._attribute(call.path), call.path, call.client
        if "notify" not in characteristic.flags:
            raise refusal("NotSupported", "Operation is not supported")
        if any(subscribed == path for subscribed, _ in self._subscriptions):
            raise refusal("NotPermitted", "Notify acquired")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)

        async def tell(value: bytes) -> None:
            await asyncio.get_running_loop().sock_sendall(ours, value)

        feed = self._start(self._notify(characteristic, tell, done=(path, client)))
        self._subscriptions[path, client] = Subscription(feed, ours)
        await self._change(path, CHARACTERISTIC, {"NotifyAcquired": Variant("b", True)})
        return [theirs, MTU]

    async def _acquire_write(self, call: Call) -> Results:
        characteristic, path = self._attribute(call.path), call.path
        if "write-without-response" not in characteristic.flags:
            raise refusal("NotSupported", "Operation is not supported")
        if self._is_set(path, CHARACTERISTIC, "WriteAcquired"):
            raise refusal("NotPermitted", "Write acquired")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        await self._change(path, CHARACTERISTIC, {"WriteAcquired": Variant("b", True)})
        self._start(self._take_writes(path, characteristic, ours))
        return [theirs, MTU]

    async def _take_writes(
        self, path: str, characteristic: Characteristic, end: socket.socket
    ) -> None:
        with end:
            while data := await asyncio.get_running_loop().sock_recv(end, MTU):
                characteristic.value = data
        if path in self._tree:
            await self._change(path, CHARACTERISTIC, {"WriteAcquired": Variant("b", False)})

    async def _notify(
        self,
        characteristic: Characteristic,
        tell: Callable[[bytes], Awaitable[None]],
        *,
        done: tuple[str, str] | None = None,
    ) -> None:
        """Send the notifications round and round until cancelled or the client's end is closed."""
        try:
            while characteristic.notifications:
                for value in characteristic.notifications:
                    await tell(value)
                    await asyncio.sleep(characteristic.notify_every_s)
        except (BrokenPipeError, ConnectionResetError):
            if done is not None:
                await self._unsubscribe(*done)

    async def _unsubscribe(self, path: str, client: str) -> None:
        self._subscriptions.pop((path, client)).stop()
        if not any(other == path for other, _ in self._subscriptions):
            properties = {"Notifying": Variant("b", False)}
            if "NotifyAcquired" in self._tree[path][CHARACTERISTIC]:
                properties["NotifyAcquired"] = Variant("b", False)
            await self._change(path, CHARACTERISTIC, properties)

    def _end_subscriptions(self) -> None:
        for subscription in self._subscriptions.values():
            subscription.stop()
        self._subscriptions.clear()

    async def _read_descriptor(self, call: Call) -> Results:
        descriptors, uuid = self._descriptor(call)
        return [_from_offset(descriptors[uuid], call.arguments[0])]

    async def _write_descriptor(self, call: Call) -> Results:
        descriptors, uuid = self._descriptor(call)
        descriptors[uuid] = bytes(call.arguments[0])
        return []

    def _attribute(self, path: str) -> Characteristic:
        """Return the characteristic. Raises: DBusError while its device is not connected."""
        if not self._is_set(path.rsplit("/", 2)[0], DEVICE, "Connected"):
            raise refusal("Failed", "Not connected")
        return self._attributes[path]

    def _descriptor(self, call: Call) -> tuple[dict[str, bytes], str]:
        uuid: str = self._tree[call.path][DESCRIPTOR]["UUID"].value
        return self._attribute(call.path.rsplit("/", 1)[0]).descriptors, uuid

    # The tree and its signals

    def _is_set(self, path: str, interface: str, name: str) -> bool:
        value = self._tree.get(path, {}).get(interface, {}).get(name)
        return value is not None and bool(value.value)

    async def _appear(self, path: str, interface: str, properties: dict[str, Variant]) -> None:
        self._tree[path] = {interface: properties}
        await self._signal(
            "/", OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", [path, self._tree[path]]
        )

    async def _change(
        self,
        path: str,
        interface: str,
        properties: dict[str, Variant],
        *,
        invalidated: Iterable[str] = (),
    ) -> None:
        gone = [name for name in invalidated if self._tree[path][interface].pop(name, None)]
        self._tree[path][interface].update(properties)
        if properties or gone:
            await self._signal(
                path, PROPERTIES, "PropertiesChanged", "sa{sv}as", [interface, properties, gone]
            )

    async def _signal(
        self, path: str, interface: str, member: str, signature: str, body: list[Any]
    ) -> None:
        # A connection that is being closed sends nothing any more, and nobody is left to hear it.
        with suppress(ConnectionError, EOFError):
            await self._bus.send(Message.new_signal(path, interface, member, signature, body))

    def _stir(self) -> None:
        """Wake everybody who waits for a change of clients, gate or adverts."""
        stirred, self._stirred = self._stirred, asyncio.Event()
        stirred.set()

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


def _is_managed(path: str) -> bool:
    return path.startswith(ADAPTER_PATH)


def _services_of(device: Advertiser) -> list[str]:
    """Return the UUIDs a device lists in its adverts: service data alone lists none."""
    return list(device.services) if isinstance(device, Peripheral) else []


def _matches(wanted: Mapping[str, Any], device: Advertiser) -> bool:
    if wanted.get("Transport", "auto") == "bredr":
        return False
    uuids = {uuid.lower() for uuid in wanted.get("UUIDs", [])}
    if uuids and not uuids & {uuid.lower() for uuid in _services_of(device)}:
        return False
    pattern: str = wanted.get("Pattern", "")
    return device.name.startswith(pattern) or device.address.startswith(pattern.upper())


def _from_offset(value: bytes, options: Mapping[str, Variant]) -> bytes:
    offset = options["offset"].value if "offset" in options else 0
    if offset > len(value):
        raise att_refusal(0x07)
    return value[offset:]
