"""docker-compose.yml and the Dockerfile: what the engine's parsers make of them is confined, pinned and complete."""

from __future__ import annotations

import fnmatch
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from dashboards import alert_files
from dashboards.files import PROVISIONED, read
from dashboards.panels import Source, bucket_of
from dashboards.publishing import FOLDERS
from dashboards.texts import LANGUAGES, say
from exchange.errors import ConfigError
from exchange.towns import read_towns
from ingest.config import load_config
from provisioning.authority import names_of
from provisioning.compose import WRITTEN, prepare
from provisioning.office import init
from tests.deployment import COMPOSE, DOCKERFILE, ROOT, Model, compose, parsed, read_environment

ONCE = {"store-setup", "backup", "restore-store"}
"""Services that do their work and end."""
WRITING = {("store-setup", "store"), ("store-setup", "services"), ("backup", "office-backups")}
"""Whose work it is to write outside of volumes, and where."""
ALERTING = "services/grafana/alerting"
"""Where the office has a town's alert rules; Grafana looks for them at a place of its own."""
SEES = {
    "broker": {"broker"},
    "store": {"store"},
    "store-setup": {"towns", "store", "services"},
    "ingest": {"services/ingest"},
    "watch": {"services/watch"},
    "rollups": {"services/rollups"},
    "grafana": {"services/grafana", ALERTING},
    "street": {"towns", "gateways"},
    "backup": {"."},
    "restore-store": {"."},
}
"""What of the office, beside its volumes."""
NETWORKS = {name: {"inside"} for name in SEES} | {
    "broker": {"field", "inside"},
    "grafana": {"desk", "inside"},
    "street": {"field"},
}
BUILT = {"onestreet/services:0.1.0": "services", "onestreet/street:0.1.0": "street"}


NAMES = {
    'host = "localhost"': 'host = "broker.example"',
    "//localhost:8086/": "//store.example:8086/",
}
"""What makes Taipei's servers have names."""


def made(folder: Path, changes: dict[str, str]) -> Path:
    """Make an office of Taipei, its file changed, and return the variables for compose. Raises: ConfigError."""
    text = (
        (ROOT / "towns" / "tw-tpe.toml").read_text(encoding="utf-8").partition("[[application]]")[0]
    )
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    file = folder / "tw-tpe.toml"
    file.write_text(text, encoding="utf-8")
    with init([file], folder / "office") as office:
        if os.geteuid() == 0:
            os.chown(office.folder, 1000, 1000)
        return prepare(office.folder, office.towns, alert_files.changes)


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("compose"), NAMES).parent


@pytest.fixture
def model(office: Path) -> Model:
    return compose(read_environment(office / "compose.env"))


def services(model: Model) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = model["services"]
    assert len(found) > 5
    return found


# -------------------------------------------------------------------------------------------------------- compose


def test_every_service_is_confined(model: Model, office: Path) -> None:
    owner = office.stat()
    for name, service in services(model).items():
        assert service["user"] == f"{owner.st_uid}:{owner.st_gid}" != "0:0", name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.keys().isdisjoint({"privileged", "cap_add", "devices", "network_mode"}), name
        limits = service["deploy"]["resources"]["limits"]
        assert limits.keys() == {"cpus", "memory", "pids"}, name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name


def test_every_image_is_pinned_or_built_here(model: Model) -> None:
    for name, service in services(model).items():
        if "build" in service:
            assert BUILT[service["image"]] == service["build"]["target"], name
        else:
            assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+", service["image"]), name


def test_what_stays_up_says_how_it_is_and_comes_back(model: Model) -> None:
    for name, service in services(model).items():
        if name in ONCE:
            assert service["restart"] == "no", name
            continue
        assert service["restart"] == "unless-stopped", name
        check = service["healthcheck"]
        assert check["test"][0] in ("CMD", "CMD-SHELL"), name
        assert check.keys() >= {"interval", "timeout", "retries", "start_period"}, name


def test_nothing_starts_before_what_it_needs(model: Model) -> None:
    for name, service in services(model).items():
        for other, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert how["condition"] == wanted, (name, other)
    for name in ("ingest", "watch"):
        assert services(model)[name]["depends_on"].keys() == {"broker", "store", "store-setup"}
    assert services(model)["rollups"]["depends_on"].keys() == {"store", "store-setup"}


def test_only_broker_and_grafana_are_to_be_had_from_outside(model: Model) -> None:
    ports = {
        name: {(port.get("host_ip", ""), port["published"]) for port in service["ports"]}
        for name, service in services(model).items()
        if "ports" in service
    }
    assert ports == {
        "broker": {("", "8883"), ("", "8884"), ("", "8885")},
        "grafana": {("127.0.0.1", "3000")},  # plain HTTP
    }
    assert model["networks"]["inside"]["internal"] is True
    found = {name: set(service["networks"]) for name, service in services(model).items()}
    assert found == NETWORKS


def test_clients_find_servers_by_the_names_in_their_certificates(model: Model) -> None:
    broker, store = services(model)["broker"], services(model)["store"]
    for network in ("field", "inside"):
        assert broker["networks"][network]["aliases"] == ["broker.example"]
    assert store["networks"]["inside"]["aliases"] == ["store.example"]
    assert store["environment"]["INFLUX_HOST"] == "https://store.example:8086"


def test_each_service_has_its_own_part_of_the_office_and_writes_to_volumes(
    model: Model, office: Path
) -> None:
    volumes = model["volumes"]
    used = set()
    seen: dict[str, set[str]] = {name: set() for name in services(model)}
    for name, service in services(model).items():
        for mount in service["volumes"]:
            if mount["type"] == "volume":
                used.add(mount["source"])
                device = Path(volumes[mount["source"]]["driver_opts"]["device"])
                if mount["target"].startswith(
                    "/office"
                ):  # at its place, so that relative paths hold
                    assert str(device.relative_to(office)) == mount["target"].removeprefix(
                        "/office/"
                    )
                continue
            source = Path(mount["source"])
            writes = (name, source.name) in WRITING
            assert mount.get("read_only", False) is not writes, (name, source)
            if source.is_relative_to(office):
                part = source.relative_to(office)
                seen[name].add(str(part))
                if str(part) != ALERTING:
                    assert mount["target"] == str(PurePosixPath("/office") / part), name
    assert seen == SEES
    assert used == set(volumes), "every volume is used"
    devices = {Path(one["driver_opts"]["device"]) for one in volumes.values()}
    ours = {office / name for name in WRITTEN}
    assert devices == ours | {office / "services" / name / "data" for name in ("ingest", "watch")}
    assert all(folder.is_dir() for folder in ours)


def test_no_service_is_given_a_secret_by_its_environment_or_command(model: Model) -> None:
    for name, service in services(model).items():
        words = [*(service.get("command") or []), *(service.get("entrypoint") or [])]
        for variable, value in service.get("environment", {}).items():
            if re.search("TOKEN|PASSWORD|SECRET|KEY", variable):
                assert value.startswith("/office/"), (name, variable)
        assert not re.search("token|password|secret", " ".join(words)), name


def test_without_an_office_the_file_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="onestreet town init"):
        compose({})


def test_a_wrong_key_is_found(office: Path, tmp_path: Path) -> None:
    """The parser is one that would find mistakes."""
    environment = read_environment(office / "compose.env")
    file = tmp_path / "docker-compose.yml"
    file.write_text(COMPOSE.read_text().replace("stop_grace_period", "stop_grace_time"))
    with pytest.raises(ValueError, match="stop_grace_time"):
        compose(environment, file)


def test_an_office_on_localhost_runs_in_containers_too(tmp_path: Path) -> None:
    """The example as it is shipped: among containers, servers go by the names of their services."""
    variables = made(tmp_path, {})
    found = services(compose(read_environment(variables)))
    assert found["broker"]["networks"]["inside"]["aliases"] == ["broker"]
    assert found["store"]["networks"]["inside"]["aliases"] == ["store"]
    office = variables.parent
    for name in ("ingest", "watch", "rollups"):
        config = load_config(office / "services" / name / "compose.toml")
        assert config.broker.host == "broker"
        assert config.store == "influxdbs://store:8086/onestreet/onestreet"
        outside = load_config(office / "services" / name / "ingest.toml")
        assert (outside.broker.host, outside.counties) == ("localhost", config.counties)
        assert f"/office/services/{name}/compose.toml" in found[name]["command"]
    kept = load_config(office / "services" / "rollups" / "compose.toml")
    assert kept.rollups.sites["tw-tpe/xinyi"].lat is not None
    # Of the office it sees its own folder: what it opens is in there.
    folder = office / "services" / "rollups"
    opened = (kept.store_ca_file, kept.store_token_file, kept.store_read_token_file)
    assert [file and file.parent for file in opened] == [folder] * 3
    assert {"broker", "localhost"} <= names_of((office / "broker" / "server.pem").read_bytes())
    assert {"store", "localhost"} <= names_of((office / "store" / "server.pem").read_bytes())
    for name in ("store-setup", "backup"):
        assert found[name]["command"][-2:] == ["--url", "https://store:8086"]
    assert found["restore-store"]["entrypoint"][-2:] == ["--url", "https://store:8086"]
    assert found["street"]["command"][-2:] == ["--broker", "broker"]
    assert found["grafana"]["environment"]["STORE_URL"] == "https://store:8086"


def test_several_workers_run_in_the_one_container(tmp_path: Path) -> None:
    store = "influxdbs://localhost:8086/onestreet/onestreet"
    office = made(tmp_path, {f'url = "{store}"': f'url = "{store}"\nworkers = 3'}).parent
    config = load_config(office / "services" / "ingest" / "compose.toml")
    assert (config.workers, len(config.further)) == (3, 2)
    for one in config.further:  # in the folder that the container sees
        assert one.tls.key_file is not None
        assert one.tls.key_file.is_relative_to(office / "services" / "ingest")
        assert one.tls.key_file.exists()
    found = services(compose(read_environment(office / "compose.env")))["ingest"]
    assert "--workers" not in found["command"], "the number is the file's"


def test_towns_that_cannot_run_in_containers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        made(
            tmp_path, {"influxdbs://localhost:8086/onestreet/onestreet": "sqlite:///data/x.sqlite"}
        )
    assert refused.value.key == "store.url"
    assert not (tmp_path / "office" / "compose.env").exists()


def test_an_office_of_root_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provisioning.compose._owner", lambda _: (0, 0))
    with pytest.raises(ConfigError, match="nothing in a container runs as root"):
        made(tmp_path, {})


# ----------------------------------------------------------------------------------------------------- Dockerfile


def test_the_dockerfile_says_nothing_that_buildkit_warns_of() -> None:
    found = parsed("dockerfile", DOCKERFILE, environment={})
    assert found["warnings"] == []


def test_images_run_as_nobody_in_particular_and_hold_no_build_tools() -> None:
    stages = {
        stage["name"]: stage for stage in parsed("dockerfile", DOCKERFILE, environment={})["stages"]
    }
    for target in BUILT.values():
        lineage = []
        name = target
        while name in stages:
            lineage.append(stages[name])
            name = stages[name]["base"]
        assert [stage["name"] for stage in lineage] == [target, "runtime"]
        commands = [one for stage in reversed(lineage) for one in stage["instructions"]]
        users = [one["to"] for one in commands if one["name"] == "USER"]
        assert users[-1] == "10001:10001"
        assert "HEALTHCHECK" in {one["name"] for one in commands}
        assert "LABEL" in {one["name"] for one in commands}
        copied = [(one.get("from"), one["to"]) for one in commands if one["name"] == "COPY"]
        assert copied == [(f"{target}-packages", "/opt/onestreet")]
        assert not any("pip install" in one.get("run", "") for one in commands)


def test_every_package_is_pinned_by_a_hash() -> None:
    stages = parsed("dockerfile", DOCKERFILE, environment={})["stages"]
    runs = [one["run"] for stage in stages for one in stage["instructions"] if one.get("run")]
    installs = [
        words for run in runs for words in run.split("&&") if "pip" in words and "install" in words
    ]
    assert len(installs) == 5
    for words in installs:
        assert "--require-hashes" in words or "--no-index" in words, words


def test_what_the_dockerfile_copies_is_what_the_builder_is_sent() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines, "nothing but what is named"
    named = [line[1:] for line in lines if line.startswith("!")]
    stages = parsed("dockerfile", DOCKERFILE, environment={})["stages"]
    copied = {
        source
        for stage in stages
        for one in stage["instructions"]
        if one["name"] == "COPY" and not one.get("from")
        for source in one["sources"]
    }
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in named), source
    for pattern in named:
        assert any(fnmatch.fnmatch(source, pattern) for source in copied), f"{pattern} is not used"
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert rooms <= copied


def pins(file: Path) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==(\S+)", file.read_text(), re.MULTILINE)
    assert found, file
    return dict(found)


@pytest.mark.parametrize("name", ["build", "services", "street"])
def test_an_images_packages_are_the_tested_ones(name: str) -> None:
    file = ROOT / "deploy" / f"{name}.lock"
    everything = pins(ROOT / "requirements.lock")
    for package, version in pins(file).items():
        assert everything[package] == version, f"{package} in {file.name}: `make lock`"
    text = file.read_text()
    assert text.count("--hash=sha256:") >= len(pins(file))
    assert not re.search(r"^\s*--(?!hash=sha256:[0-9a-f]{64})", text, re.MULTILINE)


def test_services_have_no_more_packages_than_everything_and_no_tools() -> None:
    services, street = (pins(ROOT / "deploy" / f"{one}.lock") for one in ("services", "street"))
    assert services.keys() < street.keys()
    tools = {"pytest", "ruff", "mypy", "hypothesis", "hatchling", "cyclonedx-bom", "pip", "uv"}
    assert street.keys().isdisjoint(tools)
    assert {"mqtt5", "aiohttp", "cryptography", "uvloop"} <= services.keys()


# -------------------------------------------------------------------------------------------------------- Grafana


def test_grafana_reads_the_store_by_its_own_token_over_tls(model: Model) -> None:
    """Grafana itself does not run here: its file is held to its documented form."""
    grafana = services(model)["grafana"]
    mounts = {one["target"]: Path(one["source"]) for one in grafana["volumes"]}
    file = mounts["/etc/grafana/provisioning/datasources"] / "store.yaml"
    settings = yaml.safe_load(file.read_text())
    assert settings.keys() == {"apiVersion", "prune", "datasources"}
    for source in settings["datasources"]:
        assert (source["type"], source["access"]) == ("influxdb", "proxy")
        assert source["jsonData"]["version"] == "InfluxQL"
        assert source["jsonData"]["tlsAuthWithCACert"] is True
        assert source["jsonData"]["httpHeaderName1"] == "Authorization"
        assert source["secureJsonData"]["httpHeaderValue1"].startswith("Token $__file{")
    buckets = {one["uid"]: one["jsonData"]["dbName"] for one in settings["datasources"]}
    assert buckets == {one.value: bucket_of(one, "${STORE_BUCKET}") for one in Source} | {
        "onestreet": "$STORE_BUCKET"
    }
    named = re.findall(r"\$__file\{(.+?)\}", file.read_text())
    named.append(grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD__FILE"])
    own = "/office/services/grafana"
    assert mounts[own].name == "grafana"
    assert {PurePosixPath(one).parent for one in named} == {PurePosixPath(own)}
    assert {PurePosixPath(one).name for one in named} == {
        "influx.token",
        "ca.pem",
        "admin.password",
    }
    for name in re.findall(r"\$\{?(\w+)", re.sub(r"\$__file\{.+?\}", "", file.read_text())):
        assert grafana["environment"][name], name


def test_grafana_finds_the_pages_where_they_are_mounted(model: Model) -> None:
    grafana = services(model)["grafana"]
    mounts = {one["target"]: Path(one["source"]) for one in grafana["volumes"]}
    target = "/etc/grafana/provisioning/dashboards"
    [file] = sorted(mounts[target].glob("*.yaml"))
    assert file.parent == ROOT / PROVISIONED
    providers = yaml.safe_load(file.read_text(encoding="utf-8"))["providers"]
    shown = [(one["folderUid"], one["folder"]) for one in providers]
    assert shown == [(FOLDERS[language], say("folder", language)) for language in LANGUAGES]
    pages = read(file.parent)
    for language, one in zip(LANGUAGES, providers, strict=True):
        assert one["options"]["path"] == f"{target}/{language}"
        assert any(path.startswith(f"{language}/") for path in pages)
    home = PurePosixPath(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (mounts[target] / home.relative_to(target)).is_file()


def test_grafana_finds_the_towns_alert_rules_and_who_is_told(model: Model, office: Path) -> None:
    grafana = services(model)["grafana"]
    mounts = {one["target"]: Path(one["source"]) for one in grafana["volumes"]}
    folder = mounts["/etc/grafana/provisioning/alerting"]
    wanted = alert_files.alert_files(read_towns((office / "towns").glob("*.toml")))
    assert {file.name: file.read_text("utf-8") for file in folder.iterdir()} == wanted
    assert "onestreet-tw-tpe.json" in wanted


def test_an_office_says_how_its_grafana_sends_mail(tmp_path: Path) -> None:
    office = made(tmp_path, NAMES).parent
    file = office / "services" / "grafana" / "grafana.env"
    assert file.stat().st_mode & 0o777 == 0o600
    said = file.read_text()
    offered = dict(re.findall(r"(?m)^#(GF_\w+)=(.+)$", said))
    assert offered.keys() >= {"GF_SMTP_ENABLED", "GF_SMTP_HOST", "GF_SMTP_PASSWORD__FILE"}
    own = read_environment(office / "compose.env")
    before = services(compose(own))["grafana"]["environment"]
    assert before.keys().isdisjoint(offered)
    file.write_text(re.sub(r"(?m)^#GF_", "GF_", said))
    assert services(compose(own))["grafana"]["environment"] == before | offered
    made(tmp_path, NAMES)
    assert file.read_text() != said, "it is the office's own: nobody writes over it"
