"""Who may write and read what: Mosquitto's access rules, made from the towns' files.

What no rule allows is denied. Source: docs/exchange, EX-A-003 to EX-A-008; mosquitto.conf(5), acl_file
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from exchange.topics import PREFIX
from exchange.towns import Application, Town

_OF_DEVICES = ("readings", "state", "results")


def gateway_user(county: str, gateway: str) -> str:
    """Return the name by which the broker knows a gateway."""
    return f"{county}.{gateway}"


def application_user(application: str) -> str:
    """Return the name by which the broker knows an application."""
    return f"app.{application}"


OFFICE = "office"
"""The user as whom an office clears what a broker retains of gateways that are no more; it has no certificate else."""


def access_rules(
    towns: Sequence[Town], ingests: Iterable[tuple[Sequence[str], str, Sequence[str]]]
) -> str:
    """Return the ACL of a broker.

    Shape: `ingests` are the users of an ingest's workers and of its watch, with the counties that they serve.
    """
    rules = [office_rules(town.county for town in towns)]
    for workers, watch, counties in ingests:
        rules += [ingest_rules(worker, counties) for worker in workers]
        rules.append(watch_rules(watch, counties))
    for town in towns:
        for gateway in town.gateways:
            user = gateway_user(town.county, gateway.id)
            rules.append(gateway_rules(user, town.county, gateway.site, gateway.id))
        rules += [application_rules(town.county, one) for one in town.applications]
    return "\n".join(rules)


def gateway_rules(user: str, county: str, site: str, gateway: str) -> str:
    """A gateway writes what its devices say, and reads what is for it; below its own name alone."""
    own = f"{PREFIX}/{county}/{site}/{gateway}"
    return _rules(
        user,
        write=[f"{own}/+/+/{channel}" for channel in _OF_DEVICES],
        read=[f"{own}/+/+/commands", f"{own}/receipts"],
    )


def ingest_rules(user: str, counties: Iterable[str]) -> str:
    """Each worker of ingest reads what it stores; they are the only ones to write receipts.

    Mosquitto goes by the topic of a message, not by the filter that brought it: `$share/…` needs no rule.
    """
    heads = [f"{PREFIX}/{county}/+/+" for county in counties]
    receipts = [f"{head}/receipts" for head in heads]
    return _rules(user, write=receipts, read=_below(heads, ("readings", "results")))


def office_rules(counties: Iterable[str]) -> str:
    """The office empties states that nobody is left for."""
    heads = [f"{PREFIX}/{county}/+/+" for county in counties]
    states = _below(heads, ("state",))
    return _rules(OFFICE, write=states, read=states)


def watch_rules(user: str, counties: Iterable[str]) -> str:
    """The watch reads what tells who is there."""
    heads = [f"{PREFIX}/{county}/+/+" for county in counties]
    return _rules(user, read=_below(heads, ("readings", "state")))


def application_rules(county: str, application: Application) -> str:
    """A named application commands some domains of its county, and reads there and where it was granted to."""
    heads = [f"{PREFIX}/{each}/+/+" for each in (county, *application.counties)]
    return _rules(
        application_user(application.id),
        write=[f"{heads[0]}/{domain}/+/commands" for domain in application.commands],
        read=_below(heads, application.reads),
    )


def _below(heads: Iterable[str], channels: Sequence[str]) -> list[str]:
    return [f"{head}/+/+/{channel}" for head in heads for channel in channels]


def _rules(user: str, *, write: Iterable[str] = (), read: Iterable[str] = ()) -> str:
    lines = [f"user {user}"]
    lines += [f"topic write {topic}" for topic in write]
    lines += [f"topic read {topic}" for topic in read]
    return "\n".join([*lines, ""])
