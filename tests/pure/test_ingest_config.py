"""Every wrong setting is named: file, key, value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from exchange.errors import ConfigError
from ingest.config import broker_settings, broker_tls, load_config, store_of

MINIMAL = """
counties = ["tw-tpe", "tw-nwt"]
store = "sqlite:///town.sqlite"
[broker]
host = "127.0.0.1"
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "ingest.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_what_may_be_left_out(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, MINIMAL))
    assert broker_settings(config, file=tmp_path / "ingest.toml").port == 1883
    assert (config.batch.max_points, config.batch.max_age_s) == (5000, 0.0)
    assert config.counties == ["tw-tpe", "tw-nwt"]


def test_paths_are_seen_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    (tmp_path / "secret").chmod(0o600)
    text = f'store_token_file = "tok"\n{MINIMAL}username = "ingest"\npassword_file = "secret"\n'
    file = written(tmp_path, text)
    config = load_config(file)
    assert config.store == f"sqlite:///{tmp_path}/town.sqlite"
    assert config.store_token_file == tmp_path / "tok"
    assert config.quarantine.path == tmp_path / "quarantine.sqlite"
    settings = broker_settings(config, file=file)
    assert settings.password == "s3cret"
    assert "s3cret" not in f"{config!r} {settings!r}"


def test_a_county_has_its_own_days(tmp_path: Path) -> None:
    text = (
        f'{MINIMAL}[timezones]\ntw-nwt = "Europe/Berlin"\n[watch]\nmaintenance = "windows.toml"\n'
    )
    config = load_config(written(tmp_path, text))
    assert (config.zone("tw-tpe").key, config.zone("tw-nwt").key) == (
        "Asia/Taipei",
        "Europe/Berlin",
    )
    assert config.watch.maintenance == tmp_path / "windows.toml"
    wrong = written(tmp_path, f'{MINIMAL}[timezones]\ntw-nwt = "Taipei"\n')
    with pytest.raises(ConfigError, match=r"timezones.tw-nwt = 'Taipei'"):
        load_config(wrong)


@pytest.mark.parametrize("key", ["raw_retention_days", "retention_days"])
def test_rows_are_kept_for_as_long_as_a_night_needs_them(tmp_path: Path, key: str) -> None:
    assert load_config(written(tmp_path, f"{MINIMAL}[rollups]\n{key} = 5\n"))
    with pytest.raises(ConfigError, match=rf"rollups.{key} = 4.*>= 5"):
        load_config(written(tmp_path, f"{MINIMAL}[rollups]\n{key} = 4\n"))


def test_a_password_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, f'{MINIMAL}username = "ingest"\npassword_env = "TOWN_PASSWORD"\n')
    with pytest.raises(ConfigError, match=r"broker.password_env = 'TOWN_PASSWORD'"):
        broker_settings(load_config(file), file=file)
    monkeypatch.setenv("TOWN_PASSWORD", "s3cret")
    assert broker_settings(load_config(file), file=file).password == "s3cret"


@pytest.mark.parametrize(
    ("change", "key", "value", "allowed"),
    [
        (("[broker]", "colour = 1\n[broker]"), "colour", 1, "unknown key; allowed are broker, cou"),
        (
            ("host", "prot = 1883\nhost"),
            "broker.prot",
            1883,
            "did you mean port?); allowed are host, port",
        ),
        (('host = "127.0.0.1"', ""), "broker.host", None, "is required"),
        (("counties", "county"), "county", ["tw-tpe", "tw-nwt"], "unknown key"),
        (('counties = ["tw-tpe", "tw-nwt"]', ""), "counties", None, "is required"),
        (("host", 'port = "1883"\nhost'), "broker.port", "1883", "Expected `int`, got `str`"),
        (("host", "port = 0\nhost"), "broker.port", 0, "`int` >= 1"),
        (('"tw-nwt"', '"Taipei"'), "counties[1]", "Taipei", "matching regex"),
        (('["tw-tpe", "tw-nwt"]', "[]"), "counties", [], "length >= 1"),
        (("[broker]", "[batch]\nmax_points = 0\n[broker]"), "batch.max_points", 0, "`int` >= 1"),
        (("[broker]", "[watch]\nevery_s = 900\n[broker]"), "watch.every_s", 900, "`float` <= 600"),
        (("host", "password_file = 5\nhost"), "broker.password_file", 5, ""),
    ],
)
def test_a_wrong_setting_is_named(
    tmp_path: Path, change: tuple[str, str], key: str, value: object, allowed: str
) -> None:
    assert change[0] in MINIMAL
    file = written(tmp_path, MINIMAL.replace(*change))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert (caught.value.key, caught.value.value) == (key, value)
    assert allowed in caught.value.allowed
    assert str(caught.value).startswith(str(file))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a readable"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="must be valid TOML"):
        load_config(written(tmp_path, "counties = [\n"))


def test_two_passwords_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"broker.password_env"):
        load_config(written(tmp_path, f'{MINIMAL}password_env = "A"\npassword_file = "b"\n'))


BY_CERTIFICATE = """
tls = { ca_file = "ca.pem", certificate_file = "own.pem", key_file = "own.key" }
[[worker]]
tls = { ca_file = "ca.pem", certificate_file = "2/own.pem", key_file = "2/own.key" }
"""


def test_each_worker_has_its_own_name_and_where_needed_its_own_certificate(tmp_path: Path) -> None:
    file = written(tmp_path, MINIMAL)
    config = load_config(file, workers=64)
    names = [broker_settings(config, file=file, worker=worker).client_id for worker in (1, 2, 64)]
    assert names == ["onestreet-ingest", "onestreet-ingest.2", "onestreet-ingest.64"]
    file = written(tmp_path, f"workers = 2\n{MINIMAL}{BY_CERTIFICATE}")
    assert [one.tls.key_file for one in load_config(file).further] == [tmp_path / "2" / "own.key"]
    for worker, key in ((1, "broker.tls.ca_file"), (2, r"worker\[0\].tls.ca_file")):
        with pytest.raises(ConfigError, match=f"{file}: {key}"):
            broker_tls(load_config(file), file=file, worker=worker)


def test_the_number_of_workers_is_the_flags_then_the_files(tmp_path: Path) -> None:
    file = written(tmp_path, f"workers = 2\n{MINIMAL}")
    assert (load_config(file).workers, load_config(file, 3).workers) == (2, 3)
    for wrong in (0, 65):
        with pytest.raises(ConfigError, match=f"--workers = {wrong}: 1 to 64"):
            load_config(file, wrong)
    for wrong in (0, 65):
        with pytest.raises(ConfigError, match=f"workers = {wrong}: Expected `int`"):
            load_config(written(tmp_path, f"workers = {wrong}\n{MINIMAL}"))


def test_every_worker_has_a_port_for_its_metrics(tmp_path: Path) -> None:
    file = written(tmp_path, f"{MINIMAL}[metrics]\nport = 65534\n")
    assert load_config(file, workers=2).metrics.port == 65534
    with pytest.raises(ConfigError, match=r"metrics.port = 65534: .*at most 65533"):
        load_config(file, workers=3)


@pytest.mark.parametrize("path", ["", ".", "..", "/", "/usr", "a\\u0000b"])
def test_a_quarantine_that_is_no_file_is_named(tmp_path: Path, path: str) -> None:
    file = written(tmp_path, f'{MINIMAL}[quarantine]\npath = "{path}"\n')
    with pytest.raises(ConfigError, match=r"quarantine.path = .*: must name a file"):
        load_config(file)


def test_tls_of_a_further_worker_is_not_passed_over(tmp_path: Path) -> None:
    worker = BY_CERTIFICATE[BY_CERTIFICATE.index("[[worker]]") :]
    with pytest.raises(ConfigError, match=r"worker = 1: only beside broker.tls"):
        load_config(written(tmp_path, f"workers = 2\n{MINIMAL}{worker}"))


def test_fewer_certificates_than_workers_are_named(tmp_path: Path) -> None:
    file = written(tmp_path, f"workers = 3\n{MINIMAL}{BY_CERTIFICATE}")
    with pytest.raises(
        ConfigError, match=r"ingest.toml:\d+: worker = 1: for worker 3 there must be"
    ):
        load_config(file)
    assert load_config(file, workers=2).workers == 2
    # without certificates the broker tells clients apart by their ids alone
    assert load_config(written(tmp_path, f"workers = 3\n{MINIMAL}")).workers == 3


def test_a_name_that_cannot_be_a_groups_is_refused(tmp_path: Path) -> None:
    for wrong in ("in/gest", "in+gest", "#"):
        file = written(tmp_path, f'{MINIMAL}client_id = "{wrong}"\n')
        with pytest.raises(ConfigError, match=r"broker.client_id = .* matching regex"):
            load_config(file)


def test_a_token_that_is_missing_names_its_own_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INFLUX_TOKEN", raising=False)
    there = MINIMAL.replace("sqlite:///town.sqlite", "influxdb://127.0.0.1:8086/city/readings")
    file = written(tmp_path, there)
    with pytest.raises(ConfigError, match=r"store_token_file = .*INFLUX_TOKEN"):
        store_of(load_config(file), file)
    file = written(tmp_path, f'store_token_file = "no-such-file"\n{there}')
    with pytest.raises(ConfigError, match=r"store_token_file = .*no-such-file"):
        store_of(load_config(file), file)


def test_a_store_that_is_none_names_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, MINIMAL.replace("sqlite:///town.sqlite", "mysql://db/town"))
    with pytest.raises(ConfigError, match=r"ingest.toml: store = 'mysql"):
        store_of(load_config(file), file)
