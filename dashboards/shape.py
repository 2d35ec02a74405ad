"""What judgement relies on in a page, read from anywhere; the rest of it is Grafana's own affair."""

from __future__ import annotations

from typing import Any

import msgspec


class _Part(msgspec.Struct, rename="camel"):
    """A part of a page, with what is looked at."""


class _Source(_Part):
    uid: str


class _Target(_Part):
    datasource: _Source
    query: str


class _Place(_Part):
    x: int
    y: int
    w: int
    h: int


class _Property(_Part):
    id: str
    value: Any


class _Override(_Part):
    properties: list[_Property]


class _Looks(_Part):
    defaults: dict[str, Any] = {}
    overrides: list[_Override] = []


class _Panel(_Part):
    id: int
    type: str
    title: str
    grid_pos: _Place
    description: str = ""
    targets: list[_Target] = []
    field_config: _Looks = msgspec.field(default_factory=_Looks)
    panels: list[_Panel] = []


class _Text(_Part):
    query: str


class _Variable(_Part):
    label: str
    description: str
    query: _Text
    datasource: _Source


class _Variables(_Part):
    shown: list[_Variable] = msgspec.field(name="list")


class _Link(_Part):
    icon: str
    title: str


class _Page(_Part):
    uid: str
    title: str
    description: str
    tags: list[str]
    links: list[_Link]
    templating: _Variables
    panels: list[_Panel]


def check_shape(page: object) -> None:
    """Check that a page can be judged. Raises: ValueError that names the place."""
    msgspec.convert(page, _Page)
