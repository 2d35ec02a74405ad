# Two commands set a fresh machine up and run: `make demo` and `make test`. Set-up is done once.
.DEFAULT_GOAL := help
.PHONY: help demo test check bench chaos fuzz venv lock edge-bundle sbom clean
ARGS ?=
SEED ?= 1
MINUTES ?= 10
N ?= 50000
# Debian keeps mosquitto in /usr/sbin, which is not on an ordinary user's PATH.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

help:  ## this list
	@echo 'make TARGET [ARGS="..."]'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST)

demo: .venv/.stamp  ## a town of devices, broker, agent, ingest and store, live (ARGS: options of `onestreet demo`)
	@sh scripts/system_packages.sh mosquitto dbus-daemon
	@exec .venv/bin/onestreet demo $(ARGS)

test: check  ## every test, two at a time, with a real Mosquitto, HiveMQ and InfluxDB (ARGS: options of pytest)
	@sh scripts/system_packages.sh mosquitto mosquitto-clients dbus-daemon iproute2 systemd
	@sh scripts/build_deployment_tools.sh >/dev/null
	@influxd=$$(sh scripts/find_influxd.sh) && hivemq=$$(sh scripts/build_hivemq.sh) && \
	ONESTREET_INFLUXD="$$influxd" ONESTREET_HIVEMQ="$$hivemq" PYTEST_XDIST_AUTO_NUM_WORKERS=2 \
	exec .venv/bin/python -m pytest -n auto --dist worksteal $(ARGS)

check: .venv/.stamp  ## ruff and mypy
	@echo 'check: ruff, then mypy (about a minute the first time)' >&2
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

bench: .venv/.stamp  ## the measurements of docs/performance.md, on this machine (ARGS: which)
	@sh scripts/system_packages.sh mosquitto dbus-daemon
	@influxd=$$(sh scripts/find_influxd.sh) && telegraf=$$(sh scripts/build_telegraf.sh) && \
	thingsboard=$$(sh scripts/install_thingsboard_gateway.sh) && \
	ONESTREET_INFLUXD="$$influxd" ONESTREET_TELEGRAF="$$telegraf" ONESTREET_THINGSBOARD_GATEWAY="$$thingsboard" \
	exec .venv/bin/python -m benchmarks $(ARGS)

chaos: .venv/.stamp  ## faults while data flows, then the store against the truth (SEED, MINUTES; ARGS: further options)
	@sh scripts/system_packages.sh mosquitto dbus-daemon iproute2
	@influxd=$$(sh scripts/find_influxd.sh) && \
	ONESTREET_INFLUXD="$$influxd" exec .venv/bin/python -m tests.chaos --seed $(SEED) --minutes $(MINUTES) $(ARGS)

fuzz: .venv/.stamp  ## streams of a seed through the real decode path (N: how many, SEED: which)
	@exec .venv/bin/python -m tests.fuzz --count $(N) --seed $(SEED) --jobs $$(nproc)

venv: .venv/.stamp  ## only the virtual environment, at .venv

.venv/.stamp: requirements.lock pyproject.toml scripts/venv.sh scripts/find_uv.sh
	@sh scripts/venv.sh

lock:  ## writes requirements.lock anew from pyproject.toml (ARGS: --upgrade)
	@uv=$$(sh scripts/find_uv.sh) && "$$uv" pip compile pyproject.toml --quiet --universal \
	  --python-version 3.11 --all-extras --group dev --generate-hashes --no-emit-index-url \
	  --custom-compile-command 'make lock' --output-file requirements.lock $(ARGS)
	@sh scripts/lock_images.sh

edge-bundle: .venv/.stamp  ## an offline bundle for gateways, into dist/ (64-bit ARM and x86)
	@sh scripts/edge_bundle.sh

sbom: .venv/.stamp  ## bill of materials (CycloneDX) and licences of a release, into dist/
	@sh scripts/bill_of_materials.sh

clean:  ## removes the virtual environment and every cache of the tools
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
