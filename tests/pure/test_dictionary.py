"""The dictionaries: complete, consistent, and of a kind the exchange can carry."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import pytest

from device_drivers.kit.registry import driver_ids, load
from edge_agent.config_reading import read_config
from exchange.dictionary import RESERVED, VENDOR_METRIC, Domain, Metric, Profile, dictionary
from exchange.readings import MAX_NUMBER, Pack, Sample, decode_pack, encode_pack
from exchange.states import Descriptor
from exchange.topics import LEVEL
from exchange.units import is_registered
from tests.packs import readings_topic

ROOT = Path(__file__).parents[2]
METRICS = [
    pytest.param(name, metric, id=f"{domain}-{name}")
    for domain, entry in dictionary().items()
    for name, metric in entry.metrics.items()
]
PROFILES = [
    pytest.param(entry, profile, id=f"{domain}-{profile.name}")
    for domain, entry in dictionary().items()
    for profile in entry.profiles
]


def test_the_domains_are_the_exchanges() -> None:
    assert {"air", "parking", "streetlight", "gateway", "weather", "power"} <= set(dictionary())
    assert all(LEVEL.fullmatch(domain) for domain in dictionary())


@pytest.mark.parametrize(("name", "metric"), METRICS)
def test_a_metric_is_sound(name: str, metric: Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)
    assert name not in RESERVED
    assert not VENDOR_METRIC.fullmatch(name)
    assert metric.en.strip()
    assert re.search(r"[\u4e00-\u9fff]", metric.zh_tw)
    if metric.type == "boolean":
        assert (metric.unit, metric.range, metric.max_rate_per_s) == ("", None, None)
        return
    assert metric.unit
    assert metric.senml_unit == (metric.unit if is_registered(metric.unit) else "")
    assert metric.range
    low, high = metric.range
    assert -MAX_NUMBER < low < high < MAX_NUMBER
    if metric.type == "integer":
        assert low == int(low)
        assert high == int(high)


def test_a_metric_of_two_domains_is_of_one_type_and_unit() -> None:
    # A gateway's and a lamp's `temperature` land in different measurements, and are read by the same eyes.
    kinds: dict[str, set[tuple[str, str]]] = {}
    for name, metric in chain.from_iterable(e.metrics.items() for e in dictionary().values()):
        kinds.setdefault(name, set()).add((metric.type, metric.unit))
    assert {name: kind for name, kind in kinds.items() if len(kind) > 1} == {}


def test_a_unit_that_is_not_registered_is_not_written() -> None:
    assert Metric(en="Smell", zh_tw="氣味", unit="olf").senml_unit == ""
    assert Metric(en="Ozone", zh_tw="臭氧", unit="ppb").senml_unit == "ppb"


def test_every_domain_says_what_its_devices_deliver() -> None:
    for domain, entry in dictionary().items():
        names = [profile.name for profile in entry.profiles]
        assert names, domain
        assert len(set(names)) == len(names), domain


@pytest.mark.parametrize(("domain", "profile"), PROFILES)
def test_a_profile_asks_for_what_there_is(domain: Domain, profile: Profile) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", profile.name)
    assert profile.en.strip()
    assert re.search(r"[\u4e00-\u9fff]", profile.zh_tw)
    asked = list(chain.from_iterable(profile.metrics))
    assert profile.metrics
    assert all(profile.metrics)
    assert set(asked) <= set(domain.metrics)
    assert len(set(asked)) == len(asked)
    assert set(profile.descriptor) <= set(Descriptor.__struct_encode_fields__)
    assert all(set(metrics) & set(profile.example) for metrics in profile.metrics)
    for name, command in profile.commands.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]{0,47}", name)
        assert re.search(r"[\u4e00-\u9fff]", command.zh_tw)
        assert all(argument.min < argument.max for argument in command.args.values())


@pytest.mark.parametrize("domain", dictionary())
def test_the_example_of_a_profile_is_taken(domain: str) -> None:
    topic = readings_topic(domain)
    for profile in dictionary()[domain].profiles:
        sample = Sample(1_790_000_000_000, 1_789_990_000_456, 0, profile.example)
        assert decode_pack(encode_pack(topic, [sample]), topic) == Pack([sample], [])


# What each driver is for; a sensor of the open format may be anything, so its profile is the demo's.
KINDS = {
    "plantower_pms": ("air", "particulate"),
    "intesis_dali": ("streetlight", "lamp_controller"),
    "bthome": ("parking", "bay"),
}


@pytest.mark.parametrize("driver", KINDS)
def test_a_driver_can_satisfy_its_profile(driver: str) -> None:
    domain, kind = KINDS[driver]
    device = load(driver).profile
    profile = next(one for one in dictionary()[domain].profiles if one.name == kind)
    assert all(set(metrics) & set(device.units()) for metrics in profile.metrics)
    for name, command in device.commands.items():
        asked = profile.commands[name].args
        assert {key: (one.min, one.max, one.unit) for key, one in command.args.items()} == {
            key: (one.min, one.max, one.unit) for key, one in asked.items()
        }


def test_the_agents_example_says_what_the_profiles_ask_of_its_file() -> None:
    # The rest of a descriptor comes from the driver.
    for device in read_config(ROOT / "docs" / "examples" / "edge.toml").device:
        domain, kind = KINDS[device.driver]
        assert device.domain == domain
        profile = next(one for one in dictionary()[domain].profiles if one.name == kind)
        own = set(profile.descriptor) & set(device.__struct_fields__)
        assert own >= {"location"}
        assert all(getattr(device, field) for field in own)


def test_every_driver_has_a_profile_to_satisfy() -> None:
    assert set(driver_ids()) == set(KINDS)
