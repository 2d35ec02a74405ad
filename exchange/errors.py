"""Everything onestreet raises on purpose, in one tree.

OnestreetError
├── ConfigError            a setting is wrong: names file, line, key, value and what is allowed; final
├── ContractError          a message breaks the exchange: carries the requirement's id; final
│   ├── TopicError         EX-T
│   ├── ReadingError       EX-R
│   ├── DeliveryError      EX-D
│   ├── StateError         EX-S
│   └── CommandError       EX-C
├── DeviceError            a device or its bus (device_drivers.errors grows this branch)
├── StoreError             a store (ingest.stores grows this branch)
├── UplinkError            the broker
│   ├── UplinkRefused      the broker said no (credentials, protocol); waiting alone will not help
│   └── UplinkLost         unreachable or broken off; retried
└── of one room alone      EnrolmentError (exchange.enrolment); OutboxBlocked (edge_agent.outbox); LedgerBlocked
                           (edge_agent.ledger); AuthorityError, OfficeError, BackupError (provisioning);
                           Busy (exchange.folder_lock); SimulatorError (simulators); GrafanaRefused (dashboards);
                           ProcessFailed (exchange.processes)

Final and retryable errors are different classes, so that a caller never has to read a message to decide.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

ConfigMistake: TypeAlias = Literal["value", "missing", "unknown", "file"]
"""A value is wrong, a key is missing, a key is none that is known, or the whole cannot be taken."""


class OnestreetError(Exception):
    """Root of every error raised on purpose."""


class ConfigError(OnestreetError):
    """A setting is wrong.

    `key` is the path to it (`device[2].interval_s`), `allowed` says what would be right. `line` is where it stands in
    the file, and `column` in which column of a table of rows, where that is known. By `kind` a caller decides.
    """

    def __init__(
        self,
        file: str,
        key: str,
        value: object,
        allowed: str,
        *,
        line: int | None = None,
        column: str = "",
        kind: ConfigMistake = "value",
    ) -> None:
        """Say where, what was found and what is allowed."""
        super().__init__(file, key, value, allowed)
        self.file, self.key, self.value, self.allowed = file, key, value, allowed
        self.line, self.column, self.kind = line, column, kind

    def elsewhere(
        self, file: str, key: str, *, line: int | None = None, column: str = ""
    ) -> ConfigError:
        """Return the same mistake as one of another place."""
        return ConfigError(
            file, key, self.value, self.allowed, line=line, column=column, kind=self.kind
        )

    def __str__(self) -> str:
        """`file:line: key = value: allowed`; without the value where there is none."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        if self.column:
            place += f": column 欄 {self.column}"
        found = "" if self.value is None else f" = {self.value!r}"
        return f"{place}: {self.key}{found}: {self.allowed}"


class ContractError(OnestreetError):
    """A message breaks the exchange. `requirement` is the id, `place` where in the message."""

    def __init__(self, requirement: str, detail: str, *, place: str = "") -> None:
        """Name the requirement, what was found, and where."""
        super().__init__(f"{requirement}: {place + ': ' if place else ''}{detail}")
        self.requirement, self.detail, self.place = requirement, detail, place


class TopicError(ContractError):
    """EX-T: a topic is not one of the exchange's."""


class ReadingError(ContractError):
    """EX-R: a readings payload cannot be taken."""


class DeliveryError(ContractError):
    """EX-D: a receipt is malformed."""


class StateError(ContractError):
    """EX-S: a state payload cannot be taken."""


class CommandError(ContractError):
    """EX-C: a command or result cannot be taken."""


class DeviceError(OnestreetError):
    """A device or its bus did not do what was asked."""


class StoreError(OnestreetError):
    """A store did not do what was asked."""


class UplinkError(OnestreetError):
    """The broker could not be used."""


class UplinkRefused(UplinkError):
    """The broker refused us; `code` is the MQTT reason code."""

    def __init__(self, detail: str, code: int = 0) -> None:
        """Keep the reason code beside the words."""
        super().__init__(detail)
        self.code = code


class UplinkLost(UplinkError):
    """The broker is unreachable or the connection broke."""
