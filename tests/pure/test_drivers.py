"""Every installed driver: its vectors, its profile, its decoder under fire, its twin against its driver."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_drivers.errors import FrameError
from device_drivers.kit.readme import current, refreshed
from device_drivers.kit.registry import driver_ids, load
from device_drivers.kit.vectors import Vector, differences
from exchange.dictionary import VENDOR_METRIC, dictionary
from exchange.errors import ConfigError

BYTES = st.binary(max_size=80)


VECTORS = [
    pytest.param(driver_id, vector, id=vector.id)
    for driver_id in driver_ids()
    for vector in load(driver_id).vectors()
]


@pytest.mark.parametrize(("driver_id", "vector"), VECTORS)
def test_driver_agrees_with_vector(driver_id: str, vector: Vector) -> None:
    assert differences(load(driver_id), vector) == []


@pytest.mark.parametrize("driver_id", driver_ids())
def test_a_wrong_vector_is_noticed(driver_id: str) -> None:
    """The checker can fail: every number of every vector, changed, is a difference."""
    package = load(driver_id)
    changed = 0
    for vector in package.vectors():
        for field, value in vector.expect.items():
            known = any(point.field == field and point.metric for point in package.profile.points)
            if known and isinstance(value, int | float):
                wrong = not value if isinstance(value, bool) else value + 1
                expect = {**vector.expect, field: wrong}
                assert differences(package, msgspec.structs.replace(vector, expect=expect))
                changed += 1
        if "objects" in vector.expect:
            expect = {**vector.expect, "objects": [*vector.expect["objects"], ["battery_pct", 1]]}
            assert differences(package, msgspec.structs.replace(vector, expect=expect))
            changed += 1
    assert changed


@pytest.mark.parametrize("driver_id", driver_ids())
def test_metrics_are_the_exchanges(driver_id: str) -> None:
    known = {name for domain in dictionary().values() for name in domain.metrics}
    for metric in load(driver_id).profile.units():
        assert metric in known or VENDOR_METRIC.fullmatch(metric), metric


@pytest.mark.parametrize("driver_id", driver_ids())
def test_ids_of_vectors_are_unique(driver_id: str) -> None:
    ids = [vector.id for vector in load(driver_id).vectors()]
    assert len(ids) == len(set(ids))


def contexts(driver_id: str) -> list[dict[str, object]]:
    return [vector.context for vector in load(driver_id).vectors() if vector.direction == "rx"]


@pytest.mark.parametrize("driver_id", driver_ids())
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_random_bytes_raise_nothing_but_frame_errors(driver_id: str, data: st.DataObject) -> None:
    frames = data.draw(st.lists(BYTES, max_size=3))
    context = data.draw(st.sampled_from(contexts(driver_id)))
    with suppress(FrameError):
        load(driver_id).decode(frames, context)


@pytest.mark.parametrize("driver_id", driver_ids())
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_mutated_vectors_raise_nothing_but_frame_errors(
    driver_id: str, data: st.DataObject
) -> None:
    package = load(driver_id)
    vector = data.draw(st.sampled_from([one for one in package.vectors() if one.frame_hex]))
    frame = bytearray(vector.frame)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame) - 1))
        frame[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)))
    try:
        package.decode([bytes(frame[:cut])], vector.context)
    except FrameError as error:
        assert 0 <= error.offset <= len(frame)


@pytest.mark.parametrize("driver_id", driver_ids())
@given(
    context=st.dictionaries(
        st.sampled_from(
            [
                "slave",
                "function",
                "start_address",
                "quantity",
                "channel",
                "short_address",
                "model",
                "mac",
                "bindkey",
                "t",
            ]
        ),
        st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers()),
    )
)
@settings(max_examples=200, deadline=None)
def test_any_context_raises_nothing_but_frame_errors(
    driver_id: str, context: dict[str, object]
) -> None:
    package = load(driver_id)
    frame = random.Random(5).choice([one for one in package.vectors() if one.frame_hex]).frame
    with suppress(FrameError):
        package.decode([frame], context)


def test_unknown_driver_names_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="bthome, intesis_dali, plantower_pms"):
        load("nobody")


@pytest.mark.parametrize(
    ("driver_id", "data", "key"),
    [
        ("plantower_pms", {"mode": "loud"}, "device[2].settings.mode"),
        ("plantower_pms", {"volume": 3}, "device[2].settings.volume"),
        ("intesis_dali", {"short_address": 64}, "device[2].settings.short_address"),
        ("intesis_dali", {}, "device[2].settings.short_address"),
        ("bthome", {"address": "A4:C1"}, "device[2].settings.address"),
        ("bthome", {"address": "A4:C1:38:8D:18:B2", "bindkey": "12"}, "device[2].settings.bindkey"),
    ],
)
def test_a_wrong_setting_is_named(driver_id: str, data: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(driver_id).settings(data, "town.toml", "device[2].settings")
    assert (caught.value.file, caught.value.key) == ("town.toml", key)
    assert caught.value.allowed


@pytest.mark.parametrize("driver_id", driver_ids())
def test_readme_says_what_is(driver_id: str) -> None:
    package = load(driver_id)
    text = current(package)
    for field in package.settings_type.__struct_fields__:
        assert f"\n| `{field}` |" in text
    assert refreshed(package, text) == text, "run python -m device_drivers.kit.readme"


def test_a_gateway_loads_no_twin() -> None:
    """A fresh interpreter builds and uses every driver; no twin's code comes with them."""
    code = """
import sys
from device_drivers.kit.readme import current, refreshed
from device_drivers.kit.registry import driver_ids, load
for driver_id in driver_ids():
    package = load(driver_id)
    package.profile, package.settings_type, package.vectors()
loaded = [name for name in sys.modules if "twin" in name or name.startswith("simulators")]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_agent_loads_nothing_of_bluetooth_before_there_is_a_radio() -> None:
    code = """
import sys
import edge_agent.agent
loaded = sys.modules.keys() & {"bleak", "dbus_fast", "device_drivers.links.ble"}
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
