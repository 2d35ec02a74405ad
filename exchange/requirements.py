"""Every requirement of the exchange, by its id: the MUSTs of docs/exchange, each with who it binds and how it shows.

Ids are never reused and never change their meaning; the text is normative (MUST) and the same, word for word,
in docs/exchange.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Party = Literal["device", "gateway", "ingest", "application", "broker"]
"""Who is bound. What binds a device binds the gateway that speaks for it."""


Shown = Literal["message", "conduct", "declared"]
"""How a breach shows: in one message, to a decoder; over several messages, to the conformance kit; or not at all
from outside, so that a party declares how it meets it."""


class Requirement(NamedTuple):
    """One MUST: whom it binds and how a breach shows."""

    text: str
    parties: tuple[Party, ...]
    shown: Shown = "conduct"


_DEVICE: tuple[Party, ...] = ("device", "gateway")
_GATEWAY: tuple[Party, ...] = ("gateway",)
_INGEST: tuple[Party, ...] = ("ingest",)
_APPLICATION: tuple[Party, ...] = ("application",)
_BROKER: tuple[Party, ...] = ("broker",)

REQUIREMENTS: dict[str, Requirement] = {
    # ---------------------------------------------------------------------------------------------------- topics
    "EX-T-001": Requirement(
        "A topic MUST be city/v1/{county}/{site}/{gateway}/{domain}/{device}/{channel}"
        " or city/v1/{county}/{site}/{gateway}/receipts.",
        (*_DEVICE, "ingest", "application"),
        "message",
    ),
    "EX-T-002": Requirement("Each level MUST match [a-z0-9][a-z0-9-]{0,47}.", _DEVICE, "message"),
    "EX-T-003": Requirement(
        "A county MUST be an ISO 3166-2 code in lower case.", _DEVICE, "message"
    ),
    "EX-T-004": Requirement("A domain MUST have a dictionary.", _DEVICE, "message"),
    "EX-T-005": Requirement(
        "A channel MUST be readings, state, commands, results or receipts.", _DEVICE, "message"
    ),
    "EX-T-006": Requirement(
        "The gateway MUST be a device of the domain gateway whose id is its gateway id.",
        _GATEWAY,
        "message",
    ),
    "EX-T-007": Requirement("A county MUST be one that the receiver serves.", _DEVICE),
    "EX-T-008": Requirement(
        "A device id MUST be unique in its county and stay for the life of the installation,"
        " whichever gateway serves it.",
        _GATEWAY,
        "declared",
    ),
    "EX-T-009": Requirement(
        "Readings, results, commands and receipts MUST travel with QoS 1 and not retained,"
        " state with QoS 1 and retained.",
        (*_DEVICE, "ingest"),
    ),
    # -------------------------------------------------------------------------------------------------- readings
    "EX-R-001": Requirement(
        "A readings payload MUST be a SenML pack in JSON or CBOR;"
        " a record has a name and one of v, vs, vb.",
        _DEVICE,
        "message",
    ),
    "EX-R-002": Requirement("A pack MUST hold at most 256 KiB.", _DEVICE, "message"),
    "EX-R-003": Requirement(
        "A pack MUST have one bn, {county}:{device}:, that agrees with its topic,"
        " in its first record.",
        _DEVICE,
        "message",
    ),
    "EX-R-004": Requirement(
        "A record MUST NOT have a label other than bn bt bver n u v vs vb t.", _DEVICE, "message"
    ),
    "EX-R-005": Requirement(
        "Times MUST be absolute: bt + t in seconds since 1970.", _DEVICE, "message"
    ),
    "EX-R-006": Requirement(
        "A pack MUST have exactly one epoch, a whole number of milliseconds.", _DEVICE, "message"
    ),
    "EX-R-007": Requirement(
        "Each sample MUST have exactly one seq: 0, 1, 2 … within its epoch.", _DEVICE, "message"
    ),
    "EX-R-008": Requirement("Within a pack time MUST increase with seq.", _DEVICE, "message"),
    "EX-R-009": Requirement(
        "A metric MUST be one of the domain's dictionary or x-{vendor}-{name}.", _DEVICE, "message"
    ),
    "EX-R-010": Requirement(
        "A metric MUST have its dictionary type; a vendor's metric is a number.", _DEVICE, "message"
    ),
    "EX-R-011": Requirement(
        "A value MUST lie in its plausible range or carry a quality mark.", _DEVICE, "message"
    ),
    "EX-R-012": Requirement(
        "A unit MUST be the dictionary's or convert exactly to it.", _DEVICE, "message"
    ),
    "EX-R-013": Requirement("Secondary units MUST come with bver 26.", _DEVICE, "message"),
    "EX-R-015": Requirement(
        "A quality MUST be uncertain|bad:reason or …:reason(metric), separated by semicolons.",
        _DEVICE,
        "message",
    ),
    "EX-R-016": Requirement("Numbers MUST be finite and below 2^53.", _DEVICE, "message"),
    "EX-R-017": Requirement("A metric MUST stand once in a sample.", _DEVICE, "message"),
    "EX-R-018": Requirement(
        "A pack's bver, when given, MUST be 10 or 26, in its first record alone;"
        " without it 10 holds.",
        _DEVICE,
        "message",
    ),
    "EX-R-019": Requirement(
        "A sample that is sent again MUST be the same: (device, epoch, seq) names one time"
        " and one set of values for ever.",
        _DEVICE,
    ),
    "EX-R-020": Requirement(
        "From pack to pack time MUST increase with seq within an epoch.", _DEVICE
    ),
    "EX-R-021": Requirement(
        "Within its epoch seq MUST leave out no number: a gap is a loss.", _DEVICE
    ),
    "EX-R-022": Requirement(
        "An epoch MUST be drawn from a known clock or a persisted counter, MUST begin anew after"
        " any start at which the outbox cannot be proved complete, and MUST NOT be used again.",
        _GATEWAY,
        "declared",
    ),
    "EX-R-023": Requirement(
        "A sample's time MUST be when it was measured, by a clock that agrees with UTC.", _DEVICE
    ),
    "EX-R-024": Requirement(
        "A value known to be bad MUST be left out or marked; it MUST NOT be replaced by a number.",
        _DEVICE,
        "declared",
    ),
    "EX-R-025": Requirement(
        "A device MUST send the metrics that the profile of its domain requires.", _DEVICE
    ),
    "EX-R-026": Requirement(
        "A sample that was taken before the clock was known and cannot be dated afterwards MUST be"
        " marked uncertain:clock.",
        _GATEWAY,
        "declared",
    ),
    "EX-R-027": Requirement(
        "A device MUST NOT take more samples, counted by their times, than the rate budget of its"
        " county allows.",
        _DEVICE,
        "declared",
    ),
    # -------------------------------------------------------------------------------------------------- delivery
    "EX-D-001": Requirement(
        "A receipt MUST have the shape of the schema receipt.", _INGEST, "message"
    ),
    "EX-D-002": Requirement(
        "A receipt's ranges MUST be inclusive and run from the lower seq to the higher.",
        _INGEST,
        "message",
    ),
    "EX-D-003": Requirement(
        "A sample that the store refuses for its own sake MUST be quarantined"
        " and receipted as refused with this id.",
        _INGEST,
        "declared",
    ),
    "EX-D-004": Requirement(
        "A gateway MUST send a sample again until its receipt comes or its stated drop policy"
        " removes and counts it.",
        _GATEWAY,
    ),
    "EX-D-005": Requirement(
        "A gateway MUST NOT send a sample again before its back-off has passed (30 s, doubling to"
        " 10 min, with jitter of a fifth), but when a connection broke before the broker had it.",
        _GATEWAY,
    ),
    "EX-D-006": Requirement("A gateway MUST NOT send a sample again after its receipt.", _GATEWAY),
    "EX-D-007": Requirement(
        "At most W samples of a gateway MUST be without a receipt, 5,000 unless it states"
        " another number.",
        _GATEWAY,
    ),
    "EX-D-008": Requirement(
        "With no receipt at all for 30 s a gateway MUST send again its oldest pack only.", _GATEWAY
    ),
    "EX-D-009": Requirement(
        "A gateway MUST forget only what it has sent: a receipt that names what was not sent yet"
        " has no effect.",
        _GATEWAY,
    ),
    "EX-D-010": Requirement("A gateway MUST go on after a receipt that it cannot read.", _GATEWAY),
    "EX-D-011": Requirement(
        "After 20 counted resends a gateway MUST park a sample, retry it hourly and on reconnecting,"
        " and drop it only by its stated policy.",
        _GATEWAY,
        "declared",
    ),
    "EX-D-012": Requirement(
        "A gateway MUST count what it drops and say so in its state or its metrics.",
        _GATEWAY,
        "declared",
    ),
    "EX-D-020": Requirement(
        "An ingest MUST answer every sample with a receipt, as stored or as refused.", _INGEST
    ),
    "EX-D-021": Requirement(
        "An ingest MUST send a receipt only when the store or the quarantine has the sample"
        " durably, and before it acknowledges the message to the broker.",
        _INGEST,
        "declared",
    ),
    "EX-D-022": Requirement(
        "A receipt MUST go to the gateway of the topic on which the samples came.", _INGEST
    ),
    "EX-D-023": Requirement("A receipt MUST name only samples that came.", _INGEST),
    "EX-D-024": Requirement(
        "A sample that comes again MUST be receipted again, as stored once it is stored.", _INGEST
    ),
    "EX-D-025": Requirement(
        "An ingest MUST refuse metric by metric: a sample of which some metric can be stored is"
        " receipted as stored.",
        _INGEST,
    ),
    "EX-D-026": Requirement(
        "A refused sample MUST be receipted with the id of the requirement it breaks.", _INGEST
    ),
    "EX-D-027": Requirement(
        "A payload in which no sample can be named MUST be receipted as unreadable, by its SHA-256"
        " and the id it breaks.",
        _INGEST,
    ),
    "EX-D-028": Requirement("An ingest MUST take JSON and CBOR alike.", _INGEST),
    "EX-D-029": Requirement("An ingest MUST store a sample however late it comes.", _INGEST),
    "EX-D-030": Requirement(
        "An ingest MUST take messages of up to 2 MiB from the broker, so that one that is too large"
        " is refused and not lost.",
        _INGEST,
    ),
    "EX-D-031": Requirement(
        "An ingest MUST go on after any payload: what is in order is stored and receipted.", _INGEST
    ),
    "EX-D-032": Requirement("A result MUST be receipted.", _INGEST),
    "EX-D-033": Requirement("Exactly one ingest group of a county MUST send receipts.", _INGEST),
    "EX-D-034": Requirement(
        "A rate budget MUST count distinct sample times, so that drains and resends are never"
        " refused.",
        _INGEST,
        "declared",
    ),
    "EX-D-035": Requirement(
        "An error of the store or of the way to it MUST be retried; it MUST NOT refuse a sample.",
        _INGEST,
        "declared",
    ),
    # ----------------------------------------------------------------------------------------------------- state
    "EX-S-001": Requirement(
        "A state MUST have the shape of the schema state, or be empty.", _DEVICE, "message"
    ),
    "EX-S-002": Requirement("A device that sends readings MUST have a retained state.", _DEVICE),
    "EX-S-003": Requirement("A gateway MUST have a state of its own.", _GATEWAY),
    "EX-S-004": Requirement(
        "A gateway's last will MUST be its whole state with online false and without since,"
        " retained, with QoS 1.",
        _GATEWAY,
    ),
    "EX-S-005": Requirement(
        "A gateway MUST publish the state of each of its devices on every connect.", _GATEWAY
    ),
    "EX-S-006": Requirement(
        "The epoch of a state MUST be the epoch of the newest readings.", _DEVICE
    ),
    "EX-S-007": Requirement(
        "A descriptor MUST name each metric that the device sends, with its interval.", _DEVICE
    ),
    "EX-S-008": Requirement(
        "A device that its state calls online MUST send a sample at least every two intervals.",
        _DEVICE,
    ),
    "EX-S-009": Requirement(
        "A descriptor MUST hold what the profile of its domain requires.", _DEVICE
    ),
    "EX-S-010": Requirement(
        "A gateway MUST retire a device by an empty retained state; when it is replaced its old"
        " states are emptied.",
        _GATEWAY,
        "declared",
    ),
    "EX-S-011": Requirement(
        "A device MUST have one publisher: the gateway with the newest epoch in a state.", _DEVICE
    ),
    # -------------------------------------------------------------------------------------------------- commands
    "EX-C-001": Requirement(
        "A command MUST have the shape of the schema command.", _APPLICATION, "message"
    ),
    "EX-C-002": Requirement("A command MUST expire after it is issued.", _APPLICATION, "message"),
    "EX-C-003": Requirement(
        "A result MUST have the shape of the schema result.", _DEVICE, "message"
    ),
    "EX-C-004": Requirement(
        "A command MUST be executed at most once per id, however often it comes.", _DEVICE
    ),
    "EX-C-005": Requirement(
        "A command MUST NOT be executed after it expired; it is answered with expired.", _DEVICE
    ),
    "EX-C-006": Requirement(
        "Every command that can be read MUST be answered by a result; one whose name the device does"
        " not know with rejected.",
        _DEVICE,
    ),
    "EX-C-007": Requirement("A result MUST be sent again until its receipt comes.", _GATEWAY),
    "EX-C-008": Requirement(
        "A command MUST be one that the state of its device announces.", _APPLICATION
    ),
    "EX-C-009": Requirement(
        "A device MUST go on after a command that it cannot read, and MUST NOT execute it.", _DEVICE
    ),
    "EX-C-010": Requirement(
        "Rights MUST come from the broker: issued_by is for people and grants nothing.",
        _GATEWAY,
        "declared",
    ),
    # ---------------------------------------------------------------------------------------------------- access
    "EX-A-001": Requirement(
        "A broker MUST offer nothing but TLS on any address that is not loopback.", _BROKER
    ),
    "EX-A-002": Requirement(
        "A broker MUST refuse a client without credentials, or with wrong ones.", _BROKER
    ),
    "EX-A-003": Requirement(
        "A gateway MUST NOT be able to write anything but readings, state and results below its own"
        " city/v1/{county}/{site}/{gateway}/.",
        _BROKER,
    ),
    "EX-A-004": Requirement(
        "A gateway MUST NOT be able to read anything but its own commands and receipts.", _BROKER
    ),
    "EX-A-005": Requirement("Who is not ingest MUST NOT be able to write receipts.", _BROKER),
    "EX-A-006": Requirement(
        "Who is not a named application MUST NOT be able to write commands.", _BROKER
    ),
    "EX-A-007": Requirement(
        "Without a grant a client MUST NOT be able to read or write another county.", _BROKER
    ),
    "EX-A-008": Requirement(
        "A gateway MUST NOT be able to take over another's session by its client id.", _BROKER
    ),
    "EX-A-009": Requirement(
        "A broker MUST refuse a certificate that has expired, was revoked or is from another CA.",
        _BROKER,
    ),
    "EX-A-010": Requirement(
        "Secrets MUST NOT stand in logs, errors, process lists or messages.",
        ("gateway", "ingest", "broker"),
        "declared",
    ),
}


def binding(party: Party) -> dict[str, Requirement]:
    """Return the requirements that bind a party."""
    return {name: one for name, one in REQUIREMENTS.items() if party in one.parties}
