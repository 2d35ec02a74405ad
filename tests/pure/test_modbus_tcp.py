"""The frames of Modbus TCP, with pymodbus at the other end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymodbus.framer import FramerSocket
from pymodbus.pdu import DecodePDU, ExceptionResponse, ModbusPDU
from pymodbus.pdu.bit_message import ReadCoilsResponse, ReadDiscreteInputsResponse
from pymodbus.pdu.register_message import (
    ReadHoldingRegistersResponse,
    ReadInputRegistersResponse,
    WriteMultipleRegistersResponse,
    WriteSingleRegisterResponse,
)

from device_drivers.errors import FrameError
from device_drivers.links.modbus_tcp import Answer, AnswerStream, request

server = FramerSocket(DecodePDU(is_server=True))
words = st.integers(0, 0xFFFF)
units = st.integers(0, 255)
READS = {1: ReadCoilsResponse, 2: ReadDiscreteInputsResponse}
REGISTERS = {3: ReadHoldingRegistersResponse, 4: ReadInputRegistersResponse}


@st.composite
def answers(draw: st.DrawFn) -> ModbusPDU:
    """Return anything that a server may answer."""
    named: dict[str, Any] = {"dev_id": draw(units), "transaction_id": draw(words)}
    match draw(st.integers(1, 7)):
        case function if function in READS:
            bits = draw(st.lists(st.booleans(), min_size=1, max_size=2000))
            return READS[function](bits=bits, **named)
        case function if function in REGISTERS:
            registers = draw(st.lists(words, min_size=1, max_size=125))
            return REGISTERS[function](registers=registers, **named)
        case 5:
            return WriteSingleRegisterResponse(
                address=draw(words), registers=[draw(words)], **named
            )
        case 6:
            count = draw(st.integers(1, 123))
            return WriteMultipleRegistersResponse(address=draw(words), count=count, **named)
        case _:
            function, code = draw(st.integers(1, 16)), draw(st.integers(1, 255))
            return ExceptionResponse(
                function, code, device_id=named["dev_id"], transaction=named["transaction_id"]
            )


def told(pdu: ModbusPDU) -> Answer:
    """Return what pymodbus's own parts say of a frame."""
    return Answer(pdu.transaction_id, pdu.dev_id, pdu.function_code, pdu.encode())


@given(words, units, st.sampled_from([1, 2, 3, 4]), words, st.integers(1, 125))
def test_a_read_is_understood(
    transaction: int, unit: int, function: int, address: int, count: int
) -> None:
    frame = request(transaction, unit, function, address.to_bytes(2) + count.to_bytes(2))
    used, seen_unit, seen_transaction, pdu = server.decode(frame)
    assert (used, seen_unit, seen_transaction) == (len(frame), unit, transaction)
    asked = server.decoder.decode(pdu)
    assert asked is not None
    assert (asked.function_code, asked.address, asked.count) == (function, address, count)


@given(st.lists(answers(), max_size=4), st.data())
def test_answers_come_out_however_they_are_cut(said: list[ModbusPDU], data: st.DataObject) -> None:
    sent = b"".join(server.buildFrame(pdu) for pdu in said)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    stream = AnswerStream()
    heard: list[Answer] = []
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        heard += stream.feed(sent[start:end])
    assert heard == [told(pdu) for pdu in said]


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_noise_is_no_modbus_or_frames_in_full(noise: list[bytes]) -> None:
    stream = AnswerStream()
    heard = b""
    try:
        for data in noise:
            for answer in stream.feed(data):
                heard += request(*answer)
    except FrameError as error:
        assert error.kind == "bad_header"
    assert b"".join(noise).startswith(heard)


@pytest.mark.parametrize(
    "head",
    ["0001 0001 0005 01", "0001 0000 0002 01", "0001 0000 00ff 01", "4854 5450 2f31 2e"],
)
def test_a_header_of_something_else_is_refused_before_its_end(head: str) -> None:
    with pytest.raises(FrameError, match="bad_header"):
        AnswerStream().feed(bytes.fromhex(head))
