"""The simulated street: which gateways stand on it, and what their agents are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.config_reading import read_config
from exchange.errors import ConfigError
from onestreet.cli import main
from onestreet.street import LOG_BYTES, _trim, agent_file, posts, town_plan
from provisioning.office import init, opened
from simulators.plan import check_plan
from tests.deployment import ROOT

SIZES = {"lamps": 2, "bays": 2, "air": 1}


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("street") / "office"
    with init(sorted((ROOT / "towns").glob("*.toml")), folder):
        return folder


def test_every_gateway_of_every_town_is_simulated_with_its_own_credentials(office: Path) -> None:
    found = posts(office)
    named = {(post.town.county, post.gateway.id) for post in found}
    wanted = {
        (town.county, one.id) for town in (post.town for post in found) for one in town.gateways
    }
    assert named == wanted
    assert len(named) > 5
    assert all(
        post.folder == office / "gateways" / post.town.county / post.gateway.id for post in found
    )


def test_no_two_devices_of_a_town_have_one_name(office: Path) -> None:
    found = posts(office)
    plan, parts = town_plan(found, **SIZES)
    check_plan(plan, "street")
    assert parts.keys() == {post.name for post in found}
    assert len(plan.devices) == 5 * len(found)


def test_an_agents_file_is_one_that_the_agent_takes(office: Path, tmp_path: Path) -> None:
    found = posts(office)
    _, parts = town_plan(found, **SIZES)
    kinds = {
        "modbus-rtu": {"kind": "modbus-rtu", "port": "/dev/pts/1"},
        "ble": {"kind": "ble", "dbus": "unix:path=/tmp/bus"},
    }
    credentials = set()
    for post in found:
        endpoints = {
            bus.id: kinds.get(bus.kind, {"kind": "serial", "port": f"/dev/{bus.id}"})
            for bus in parts[post.name].buses
        }
        file = tmp_path / f"{post.name}.toml"
        file.write_text(agent_file(post, parts[post.name], endpoints, tmp_path), encoding="utf-8")
        config = read_config(file)
        assert (config.gateway.county, config.gateway.site) == (post.town.county, post.site.id)
        assert config.gateway.id == post.gateway.id
        assert {one.interval_s for one in config.device} == {60.0}
        assert config.broker.tls is not None
        assert config.broker.tls.ca_file == post.folder / "ca.pem"
        credentials.add(post.gateway.credential)
        if post.gateway.credential == "password":
            assert config.broker.password_file == post.folder / "password"
        else:
            assert config.broker.tls.key_file == post.folder / "key.pem"
    assert credentials == {"certificate", "password"}, "the example has both"


def test_who_was_revoked_is_not_simulated(tmp_path: Path) -> None:
    folder = tmp_path / "office"
    with init(sorted((ROOT / "towns").glob("*.toml")), folder):
        before = {post.name for post in posts(folder)}
    with opened(folder) as office:
        office.revoke_gateway("tw-tpe", "xinyi-1")
    assert {post.name for post in posts(folder)} == before - {"tw-tpe.xinyi-1"}


def test_an_office_whose_gateways_enrol_has_nothing_to_simulate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with init(sorted((ROOT / "towns").glob("*.toml")), tmp_path / "office", hand_out=False):
        pass
    with pytest.raises(ConfigError, match="onestreet town init"):
        posts(tmp_path / "office")
    assert main(["street", str(tmp_path / "office")]) == 2
    assert "must hold a gateway's credentials" in capsys.readouterr().err


def test_logs_do_not_fill_the_disk(tmp_path: Path) -> None:
    large, small, other = (tmp_path / name for name in ("a.log", "b.log", "outbox.sqlite"))
    with large.open("ab") as appending:
        appending.write(b"x" * (LOG_BYTES + 1))
        appending.flush()
        small.write_bytes(b"kept")
        other.write_bytes(b"x" * (LOG_BYTES + 1))
        _trim([tmp_path, tmp_path / "not-there"])
        appending.write(b"goes on")
    assert large.read_bytes() == b"goes on"
    assert small.read_bytes() == b"kept"
    assert other.stat().st_size > LOG_BYTES
