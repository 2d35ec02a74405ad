"""Every requirement of the exchange that code can tell to be broken, by its id.

Ids are never reused and never change their meaning; the text is normative (MUST).
"""

from __future__ import annotations

REQUIREMENTS: dict[str, str] = {
    "EX-T-001": "A topic is city/v1/{county}/{site}/{gateway}/{domain}/{device}/{channel} or …/{gateway}/receipts.",
    "EX-T-002": "Each level matches [a-z0-9][a-z0-9-]{0,47}.",
    "EX-T-003": "A county is an ISO 3166-2 code in lower case.",
    "EX-T-004": "A domain has a dictionary.",
    "EX-T-005": "A channel is readings, state, commands, results or receipts.",
    "EX-T-006": "The gateway is a device of the domain gateway whose id is its gateway id.",
    "EX-T-007": "A county is one that the receiver serves.",
    "EX-R-001": "A readings payload is a SenML pack in JSON or CBOR; a record has a name and one of v, vs, vb.",
    "EX-R-002": "A pack holds at most 256 KiB.",
    "EX-R-003": "A pack has one bn, {county}:{device}:, that agrees with its topic, in its first record.",
    "EX-R-004": "Only the labels bn bt bver n u v vs vb t are used.",
    "EX-R-005": "Times are absolute: bt + t in seconds since 1970.",
    "EX-R-006": "A pack has exactly one epoch, a whole number of milliseconds.",
    "EX-R-007": "Each sample has exactly one seq: 0, 1, 2 … within its epoch.",
    "EX-R-008": "Within a pack time increases with seq.",
    "EX-R-009": "A metric is one of the domain's dictionary or x-{vendor}-{name}.",
    "EX-R-010": "A metric has its dictionary type; a vendor's metric is a number.",
    "EX-R-011": "A value lies in its plausible range or carries a quality mark.",
    "EX-R-012": "A unit is the dictionary's or converts exactly to it.",
    "EX-R-013": "Secondary units need bver 26.",
    "EX-R-015": "A quality is uncertain|bad:reason or …:reason(metric), separated by semicolons.",
    "EX-R-016": "Numbers are finite and below 2^53.",
    "EX-R-017": "A metric stands once in a sample.",
    "EX-R-018": "A pack's bver, when given, is 10 or 26, in its first record alone; without it 10 holds.",
    "EX-D-001": "A receipt has the shape of the schema receipt.",
    "EX-D-002": "Ranges are inclusive and ascending.",
    "EX-D-003": "A store can hold the sample.",
    "EX-S-001": "A state has the shape of the schema state, or is empty.",
    "EX-C-001": "A command has the shape of the schema command.",
    "EX-C-002": "A command expires after it is issued.",
    "EX-C-003": "A result has the shape of the schema result.",
}
