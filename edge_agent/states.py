"""The retained states: what the gateway says of itself and of each of its devices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from edge_agent.attended import model_of
from edge_agent.config import Device, Gateway
from edge_agent.gateway_device import METRICS
from edge_agent.report_by_exception import paces
from exchange.states import Descriptor, State, encode_state
from exchange.topics import Topic


def state_topic(gateway: Gateway, domain: str, device: str) -> str:
    """Return where the state of a device of this gateway is retained."""
    return str(Topic(gateway.county, gateway.site, gateway.id, domain, device, "state"))


def gateway_state(
    gateway: Gateway, epoch: int, since: datetime | None, *, clock_known: bool = True
) -> bytes:
    """Return the gateway's own state; without `since` it is offline, as its will says."""
    return encode_state(
        State(
            v=1,
            online=since is not None,
            since=since,
            interval_s=gateway.interval_s,
            epoch=epoch,
            clock_known=clock_known,
            descriptor=Descriptor(
                label=gateway.label,
                location=gateway.location,
                township=gateway.township,
                metrics=dict.fromkeys(METRICS, gateway.interval_s),
            ),
        )
    )


def device_state(
    device: Device,
    epoch: int,
    since: datetime,
    *,
    metrics: Iterable[str],
    commands: Sequence[str],
) -> bytes:
    """Return a device's state: what it reports, how often at least, and which commands it takes."""
    package = device.package
    profile = package.profile
    pace = paces(device, sorted(metrics))
    return encode_state(
        State(
            v=1,
            online=True,
            since=since,
            interval_s=pace.interval_s,
            epoch=epoch,
            descriptor=Descriptor(
                maker=profile.identity.maker,
                model=model_of(device),
                brand_origin=profile.identity.brand_origin,
                serial=device.serial,
                driver=package.id,
                transport=profile.transport.kind,
                label=device.label,
                asset_id=device.asset_id,
                cabinet=device.cabinet,
                circuit=device.circuit,
                location=device.location,
                township=device.township,
                installed=device.installed,
                metrics=pace.metrics,
                commands=list(commands),
            ),
        )
    )
