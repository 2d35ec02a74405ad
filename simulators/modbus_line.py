"""Modbus buses with twins on them: RTU on a pseudo terminal, TCP on loopback.

The frames and messages are pymodbus's; the server is ours: pymodbus's own copies registers out of a
table, while here a twin answers each request itself and several twins share a unit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pymodbus.constants import ExcCodes
from pymodbus.framer import FramerRTU, FramerSocket
from pymodbus.pdu import DecodePDU, ExceptionResponse, ModbusPDU
from pymodbus.pdu.bit_message import (
    ReadCoilsResponse,
    ReadDiscreteInputsResponse,
    WriteMultipleCoilsResponse,
    WriteSingleCoilResponse,
)
from pymodbus.pdu.register_message import (
    ReadHoldingRegistersResponse,
    ReadInputRegistersResponse,
    WriteMultipleRegistersRequest,
    WriteMultipleRegistersResponse,
    WriteSingleRegisterResponse,
)

from device_drivers.kit.twin import ModbusException, ModbusTwin
from simulators.errors import SimulatorError
from simulators.gate import Gate
from simulators.line import Endpoint
from simulators.pseudo_terminal import PseudoTerminal

BROADCAST: Final = 0
FRAME_GAP_S: Final = 0.05
"""Silence after which an unfinished frame is given up. The standard says 3.5 characters (1.75 ms at
19200 baud), which no USB adapter and no PTY keeps; a client writes a request at once."""
FRAME_MAX: Final = 260
"""Bytes of the longest frame (TCP: 7 of header and 253 of message)."""

READ_BITS: Final = {1: ReadCoilsResponse, 2: ReadDiscreteInputsResponse}
READ_REGISTERS: Final = {3: ReadHoldingRegistersResponse, 4: ReadInputRegistersResponse}


class ModbusUnits:
    """The twins behind one bus, by unit and register: turns a request into its answer."""

    def __init__(self, twins: Iterable[ModbusTwin], gate: Gate) -> None:
        """Take the twins. Raises: SimulatorError when two claim the same register."""
        self._gate = gate
        self._decoder = DecodePDU(is_server=True)
        self._twins: dict[int, list[ModbusTwin]] = {}
        for twin in twins:
            neighbours = self._twins.setdefault(twin.unit, [])
            for other in neighbours:
                if twin.addresses[0] <= other.addresses[-1] and (
                    other.addresses[0] <= twin.addresses[-1]
                ):
                    raise SimulatorError(
                        f"unit {twin.unit}: {twin.addresses} and {other.addresses} overlap"
                    )
            neighbours.append(twin)

    def __contains__(self, unit: int) -> bool:
        return unit in self._twins

    def answer(self, unit: int, message: bytes) -> ModbusPDU | None:
        """Return the answer of a known unit; None when it is withheld."""
        function = message[0]
        request = self._decoder.decode(message)
        if request is None:
            known = function in self._decoder.pdu_table
            wrong = ExcCodes.ILLEGAL_VALUE if known else ExcCodes.ILLEGAL_FUNCTION
            return ExceptionResponse(function, wrong, device_id=unit)
        try:
            answer = self._gate.pass_through(lambda: self._carry_out(unit, request))
        except ModbusException as refusal:
            answer = ExceptionResponse(function, refusal.code)
        if answer is not None:
            answer.dev_id = unit
        return answer

    def _carry_out(self, unit: int, request: ModbusPDU) -> ModbusPDU:
        """Ask the twin. Raises: ModbusException."""
        function, address = request.function_code, request.address
        if function in READ_BITS:
            bits = self._twin(unit, address, request.count).read(function, address, request.count)
            return READ_BITS[function](bits=[bool(bit) for bit in bits])
        if function in READ_REGISTERS:
            twin = self._twin(unit, address, request.count)
            return READ_REGISTERS[function](
                registers=list(twin.read(function, address, request.count))
            )
        if function == 5:
            self._write(unit, function, address, request.bits)
            return WriteSingleCoilResponse(address=address, bits=request.bits)
        if function == 6:
            self._write(unit, function, address, request.registers)
            return WriteSingleRegisterResponse(address=address, registers=request.registers)
        if function == 15:
            self._write(unit, function, address, request.bits)
            return WriteMultipleCoilsResponse(address=address, count=len(request.bits))
        if isinstance(request, WriteMultipleRegistersRequest):
            if not request.count == len(request.registers) == (request.byte_count or 0) // 2:
                raise ModbusException(ExcCodes.ILLEGAL_VALUE)
            self._write(unit, function, address, request.registers)
            return WriteMultipleRegistersResponse(address=address, count=request.count)
        raise ModbusException(ExcCodes.ILLEGAL_FUNCTION)

    def _write(self, unit: int, function: int, address: int, values: Sequence[int]) -> None:
        twin = self._twin(unit, address, len(values))
        twin.write(function, address, [int(value) for value in values])

    def _twin(self, unit: int, address: int, count: int) -> ModbusTwin:
        """Return the twin that has all these registers. Raises: ModbusException 2."""
        for twin in self._twins[unit]:
            if address in twin.addresses and address + count - 1 in twin.addresses:
                return twin
        raise ModbusException(ExcCodes.ILLEGAL_ADDRESS)


class ModbusRtuLine:
    """Modbus RTU at `path`. Unknown units, broken frames and broadcasts meet silence."""

    def __init__(
        self,
        twins: Iterable[ModbusTwin],
        path: Path,
        *,
        gate: Gate | None = None,
        baud: int | None = None,
    ) -> None:
        self._units = ModbusUnits(twins, gate or Gate())
        self._framer = FramerRTU(DecodePDU(is_server=True))
        self._terminal = PseudoTerminal(path, hear=self._hear, baud=baud)
        self._received = b""
        self._received_s = 0.0

    @property
    def port(self) -> str:
        """The path a client opens."""
        return str(self._terminal.path)

    @property
    def endpoint(self) -> Endpoint:
        return {"kind": "modbus-rtu", "port": self.port}

    async def __aenter__(self) -> Self:
        await self._terminal.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._terminal.__aexit__(kind, error, trace)

    async def quiet(self) -> None:
        await self._terminal.drained()

    def _hear(self, data: bytes) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._received_s > FRAME_GAP_S:
            self._received = b""
        self._received_s = now_s
        self._received = (self._received + data)[-FRAME_MAX:]
        used, unit, _, message = self._framer.decode(self._received)
        self._received = self._received[used:]
        if not message or unit == BROADCAST or unit not in self._units:
            return
        answer = self._units.answer(unit, message)
        if answer is not None:
            self._terminal.write(self._framer.buildFrame(answer))


class ModbusTcpLine:
    """Modbus TCP on a free port of 127.0.0.1. An unknown unit is exception 11."""

    host: Final = "127.0.0.1"

    def __init__(self, twins: Iterable[ModbusTwin], *, gate: Gate | None = None) -> None:
        self._units = ModbusUnits(twins, gate or Gate())
        self._framer = FramerSocket(DecodePDU(is_server=True))
        self._clients: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def endpoint(self) -> Endpoint:
        return {"kind": "modbus-tcp", "host": self.host, "port": self.port}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for client in self._clients:
            client.close()
        await self._server.wait_closed()

    async def quiet(self) -> None:
        for client in tuple(self._clients):
            with suppress(ConnectionError):
                await client.drain()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            received = b""
            while data := await reader.read(FRAME_MAX):
                received = self._take(received + data, writer.write)
                if len(received) >= FRAME_MAX or received[2:4] not in (b"", b"\0", b"\0\0"):
                    return  # not Modbus: without a header there is no next frame to find
                await writer.drain()
        except ConnectionError:
            return  # a client may go at any time
        finally:
            self._clients.discard(writer)
            writer.close()

    def _take(self, received: bytes, send: Callable[[bytes], None]) -> bytes:
        """Answer every whole frame and return the rest."""
        while True:
            used, unit, transaction, message = self._framer.decode(received)
            if not used or not message:
                return received[used:]
            received = received[used:]
            if unit in self._units:
                answer = self._units.answer(unit, message)
            else:
                answer = ExceptionResponse(message[0], ExcCodes.GATEWAY_NO_RESPONSE, device_id=unit)
            if answer is not None:
                answer.transaction_id = transaction
                send(self._framer.buildFrame(answer))
