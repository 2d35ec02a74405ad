"""The pages as Grafana's JSON, through the models of its foundation SDK; no other file knows that library."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from grafana_foundation_sdk.builders import barchart as bars_builder
from grafana_foundation_sdk.builders import common as common_builder
from grafana_foundation_sdk.builders import dashboard as page_builder
from grafana_foundation_sdk.builders import geomap as map_builder
from grafana_foundation_sdk.builders import stat as stat_builder
from grafana_foundation_sdk.builders import statetimeline as states_builder
from grafana_foundation_sdk.builders import table as table_builder
from grafana_foundation_sdk.builders import timeseries as lines_builder
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common, dashboard, statetimeline

from dashboards.influxql import Select
from dashboards.looks import DECIMALS, LIMITS, PLAIN, UNITS, VALUES
from dashboards.pages import PAGES
from dashboards.pages.parts import ZONE
from dashboards.panels import WIDTH, Band, Field, Kind, Link, Page, Panel, Source, Variable
from dashboards.texts import LANGUAGES, Language, say, titles

TAG = "onestreet"
PLUGIN = "influxdb"
NOTHING = "–"
WIDTHS = {"moment": 130, "since": 130, "day": 95, "s": 90, "id": 122}
"""Of columns, by unit, at least. Units: pixels."""
ARROW = 24
"""Of a column's head that says by what is sorted."""
SILENCE_MS = 10_800_000
"""What was said for so long is no more said of a device that is silent: Grafana would draw it until now."""
_LEADS = {Link.COUNTY: "overview", Link.SITE: "site", Link.DEVICE: "device"}
_GOES_ALONG = {
    Link.COUNTY: ("county",),
    Link.SITE: ("county", "site"),
    Link.DEVICE: ("county", "site", "device"),
}
AnyPanel = (
    stat_builder.Panel
    | table_builder.Panel
    | lines_builder.Panel
    | bars_builder.Panel
    | states_builder.Panel
    | map_builder.Panel
)


def uid(page: str, language: Language) -> str:
    """Return the uid of a page: English has none of its own, so that links from anywhere stay short."""
    return f"onestreet-{page}" + ("-zh" if language == "zh-TW" else "")


def page_json(page: Page, language: Language) -> str:
    """Return a page as Grafana takes it: the same bytes for the same source."""
    built = _Page(page, language).build()
    text = json.dumps(built, cls=JSONEncoder, ensure_ascii=False, indent=1, sort_keys=True)
    return f"{text}\n"


def check_model(text: str) -> None:
    """Read a page by the SDK's own models. Raises: what they raise for a page that is none of Grafana's."""
    register_default_plugins()
    dashboard.Dashboard.from_json(json.loads(text))


class _Target(Dataquery, Builder[Dataquery]):
    """An InfluxQL query in a panel; the SDK has none."""

    def __init__(self, select: Select, panel: Panel, index: int, mark: str) -> None:
        self._select, self._panel, self._index, self._mark = select, panel, index, mark

    def build(self) -> Dataquery:
        return self

    def to_json(self) -> dict[str, object]:
        series = self._panel.kind in (Kind.LINES, Kind.STATES)
        alias = f"$tag_site, $tag_county{self._mark}" if self._panel.by_site else "$col"
        return {
            "refId": chr(ord("A") + self._index),
            "datasource": {"type": PLUGIN, "uid": self._panel.source.value},
            "query": str(self._select),
            "rawQuery": True,
            "resultFormat": "time_series" if series else "table",
            **({"alias": alias} if series else {}),
        }


class _States(states_builder.Panel):
    """States without a pager: the SDK's builder refuses the 0 that Grafana takes for that."""

    def build(self) -> dashboard.Panel:
        built = super().build()
        assert isinstance(built.options, statetimeline.Options)
        built.options.per_page = 0
        return built


class _Thresholds(Builder[dashboard.ThresholdsConfig]):
    """The colours of a kind of limits; of none, a colour that says nothing."""

    def __init__(self, limits: str) -> None:
        self._steps = LIMITS[limits] if limits else PLAIN

    def build(self) -> dashboard.ThresholdsConfig:
        steps = [dashboard.Threshold(value=above, color=colour) for above, colour in self._steps]
        return dashboard.ThresholdsConfig(steps=steps)


class _Page:
    """One page in one language, while it is built."""

    def __init__(self, page: Page, language: Language) -> None:
        self._page, self._language = page, language
        self._panels = 0

    def build(self) -> dashboard.Dashboard:
        page = self._page
        made = (
            page_builder.Dashboard(self._say(page.name))
            .uid(uid(page.name, self._language))
            .description(self._say(f"{page.name}.about"))
            .tags(self._tags())
            .timezone(ZONE)
            .time(page.range_from, "now")
            .refresh(page.refresh)
            .readonly()
            .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
            .variables([self._variable(variable) for variable in page.variables])
            .annotations([])
            .links(self._links())
        )
        y = 0
        for band in page.bands:
            y = self._band(made, band, y)
        return made.build()

    def _many(self) -> str:
        """Return the tag of the pages that take several sites."""
        return f"{TAG}-{self._language}-pages"

    def _tags(self) -> list[str]:
        of_one = _is_of_one(self._page)
        return [TAG, f"{TAG}-{self._language}", *([] if of_one else [self._many()])]

    def _say(self, key: str) -> str:
        return say(key, self._language)

    def _band(self, made: page_builder.Dashboard, band: Band, y: int) -> int:
        """Add a band at `y` and return where the next one begins."""
        row = None
        if band.fold:
            self._panels += 1
            row = page_builder.Row(self._say(band.fold)).id(self._panels).collapsed(collapsed=True)
            row.grid_pos(dashboard.GridPos(h=1, w=WIDTH, x=0, y=y))
            y += 1
        x, top = 0, y
        for panel in band.panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + band.height
            place = dashboard.GridPos(h=band.height, w=panel.width, x=x, y=y)
            x += panel.width
            if row is None:
                made.with_panel(self._panel(panel, place))
            else:
                row.with_panel(self._panel(panel, place))
        if row is None:
            return y + band.height
        made.with_row(row)
        return top  # closed it takes no more than its line

    def _panel(self, panel: Panel, place: dashboard.GridPos) -> AnyPanel:
        self._panels += 1
        made = _frame(panel)
        made.id(self._panels).grid_pos(place)
        title, about = titles(self._page, panel)
        made.title(self._say(title)).description(self._say(about))
        made.datasource(_source(panel.source))
        marks = [f" ({self._say(mark)})" if mark else "" for mark in panel.marks]
        asks = zip(panel.asks, marks or [""] * len(panel.asks), strict=True)
        made.targets([_Target(ask, panel, index, mark) for index, (ask, mark) in enumerate(asks)])
        made.no_value(self._say(panel.empty))
        if panel.last:
            made.time_from(panel.last)
        shown = [field for field in panel.fields if not field.hidden]
        made.unit(UNITS[shown[0].unit] if len(shown) == 1 else "none")
        made.thresholds(_Thresholds(shown[0].limits if len(shown) == 1 else ""))
        if isinstance(made, stat_builder.Panel):
            called = re.escape(self._say(shown[0].text))
            reduced = common_builder.ReduceDataOptions().calcs(["lastNotNull"])
            made.reduce_options(reduced.fields(f"/^{called}$/"))
        if isinstance(made, table_builder.Panel) and panel.worst:
            heads = {field.name: self._say(field.text) for field in panel.fields}
            made.sort_by(
                [
                    common_builder.TableSortByFieldState()
                    .display_name(heads[name])
                    .desc(desc=not panel.least)
                    for name in panel.worst
                ]
            )
        if made_table := isinstance(made, table_builder.Panel):
            made.transformations(_in_order(panel))
        if panel.kind is Kind.MAP:
            [last] = panel.worst
            drawn = {"fields": {}, "sort": [{"field": last, "desc": False}]}
            made.transformations([dashboard.DataTransformerConfig(id_val="sortBy", options=drawn)])
        if not made_table and any(field.unit == "since" for field in panel.fields):
            made.transformations([_AS_TIME])
        if panel.kind is Kind.BARS:
            made.override_by_name(
                "Time", [dashboard.DynamicConfigValue("unit", UNITS["short day"])]
            )
        if not panel.by_site:  # those lines are called by their sites: their looks are the panel's
            for field in panel.fields:
                name = "Time" if field.name == "time" else field.name
                made.override_by_name(name, self._looks(field, panel))
        return made

    def _looks(self, field: Field, panel: Panel) -> list[dashboard.DynamicConfigValue]:
        """Return how a column is shown, as overrides of its name."""
        said: dict[str, object] = {"displayName": self._say(field.text)}
        said["unit"] = UNITS[field.unit]
        if field.unit in DECIMALS:
            said["decimals"] = DECIMALS[field.unit]
        if field.unit == "share":
            said["min"], said["max"] = 0, 1
        if field.values and panel.kind is not Kind.BARS:
            said["mappings"] = [
                dashboard.ValueMap(
                    {
                        value: dashboard.ValueMappingResult(
                            text=self._say(name.text), color=name.colour, index=index
                        )
                        for index, (value, name) in enumerate(VALUES[field.values].items())
                    }
                )
            ]
        if field.limits:
            said["thresholds"] = _Thresholds(field.limits).build()
            if panel.kind is not Kind.LINES and panel.kind is not Kind.BARS:
                said["color"] = {"mode": "thresholds"}
        if field.colour and panel.kind in (Kind.LINES, Kind.BARS):
            said["color"] = {"mode": "fixed", "fixedColor": field.colour}
        if panel.kind is Kind.MAP and field.hidden:
            said["custom.hideFrom"] = {"legend": False, "tooltip": True, "viz": False}
        if panel.kind is Kind.TABLE:
            said["noValue"] = (
                NOTHING  # of a cell; what stands in a table without rows is the panel's
            )
            if field.limits or (
                field.values and field.values not in ("meaning", "domain", "lasted")
            ):
                said["custom.cellOptions"] = {"type": "color-text"}
            if field.hidden:
                said["custom.hidden"] = True
                said["custom.width"] = 1  # room is shared out among hidden ones, too
            elif width := self._width(field):
                said["custom.width"] = width
            else:
                arrow = ARROW if field.name in panel.worst else 0
                header = _length(self._say(field.text)) + arrow
                least = WIDTHS.get(field.unit, 70) if field.unit else 110
                said["custom.minWidth"] = max(least, header)
        if panel.kind is Kind.STATES:
            said["custom.spanNulls"] = SILENCE_MS
        if field.link is not None:
            said["links"] = [{"title": self._say(f"to {field.link}"), "url": self._url(field.link)}]
        return [dashboard.DynamicConfigValue(key, value) for key, value in said.items()]

    def _width(self, field: Field) -> int:
        """Return how wide a column is, where that is said; of sentences it is the longest one."""
        if field.values != "meaning":
            return field.width
        return max(_length(self._say(name.text)) for name in VALUES[field.values].values())

    def _url(self, link: Link) -> str:
        """Return where a click leads: what the row names goes along, and the time that is shown."""
        chosen = "&".join(f"var-{name}=${{__data.fields.{name}}}" for name in _GOES_ALONG[link])
        return f"/d/{uid(_LEADS[link], self._language)}?{chosen}&${{__url_time_range}}"

    def _variable(self, variable: Variable) -> page_builder.QueryVariable:
        made = (
            page_builder.QueryVariable(variable.name)
            .label(self._say(variable.name))
            .description(self._say(f"variable.{variable.name}"))
            .datasource(_source(Source.RAW))
            .query(
                {"query": str(variable.asks), "refId": "InfluxVariableQueryEditor-VariableQuery"}
            )
            .refresh(dashboard.VariableRefresh.ON_DASHBOARD_LOAD)
            .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
            .multi(variable.several)
            .include_all(variable.several)
        )
        if variable.several:
            everything = self._say("all")
            made.all_value(".*")
            made.current(dashboard.VariableOption(text=everything, value="$__all", selected=True))
        return made

    def _links(self) -> list[Builder[dashboard.DashboardLink]]:
        """Return links to the other pages, to this one in the other language or alone; what is chosen goes along."""
        pages = (  # a list that opens: on a phone each of them would be a line
            page_builder.DashboardLink(self._say("pages"))
            .type(dashboard.DashboardLinkType.DASHBOARDS)
            .tags([self._many()])
            .as_dropdown(as_dropdown=True)
            .include_vars(include_vars=True)
            .keep_time(keep_time=True)
        )
        made: list[Builder[dashboard.DashboardLink]] = [pages]
        made += [
            # Grafana hands "all" on even to a page that has one site only, and it would read every device.
            _link(
                self._say(page.name),
                uid(page.name, self._language),
                "dashboard",
                along=_is_of_one(self._page),
            )
            for page in PAGES
            if _is_of_one(page) and page is not self._page
        ]
        other: Sequence[Language] = [one for one in LANGUAGES if one != self._language]
        made += [
            _link(say("this language", one), uid(self._page.name, one), "external link")
            for one in other
        ]
        alone = f"{uid(self._page.name, self._language)}?kiosk"
        return [*made, _link(self._say("wall"), alone, "bolt")]


def _length(words: str) -> int:
    """Return how wide a cell of words is, about. Units: pixels."""
    return 16 + sum(map(_letter, words))


def _letter(letter: str) -> int:
    if not letter.isascii():
        return 14
    if letter in " ,.:;fijlrtI1":
        return 5
    return 12 if letter in "mwMW" else 9 if letter.isupper() else 8


def _is_of_one(page: Page) -> bool:
    return not all(variable.several for variable in page.variables)


def _link(title: str, page: str, icon: str, *, along: bool = True) -> page_builder.DashboardLink:
    return (
        page_builder.DashboardLink(title)
        .type(dashboard.DashboardLinkType.LINK)
        .url(f"/d/{page}")
        .icon(icon)
        .tooltip(title)
        .include_vars(include_vars=along)
        .keep_time(keep_time=True)
    )


_AS_TIME = dashboard.DataTransformerConfig(
    id_val="convertFieldType",
    options={"conversions": [{"targetField": "since", "destinationType": "time"}], "fields": {}},
)
"""Makes a moment of `since`, which rows have as text in UTC."""


def _in_order(panel: Panel) -> list[dashboard.DataTransformerConfig]:
    """Return what puts the columns of a table into our order: Grafana's InfluxDB has tags in any, another each time."""
    names = ["Time" if field.name == "time" else field.name for field in panel.fields]
    hidden = {field.name for field in panel.fields if field.hidden}
    order = {
        "indexByName": {name: index for index, name in enumerate(names)},
        "excludeByName": {"Time": True} if "time" in hidden else {},
        "renameByName": {},
    }
    made = [dashboard.DataTransformerConfig(id_val="organize", options=order)]
    return [_AS_TIME, *made] if any(field.unit == "since" for field in panel.fields) else made


def _source(source: Source) -> dashboard.DataSourceRef:
    return dashboard.DataSourceRef(type_val=PLUGIN, uid=source.value)


def _frame(panel: Panel) -> AnyPanel:
    """Return an empty panel of a kind, with what all of that kind have in common."""
    legend = common_builder.VizLegendOptions().show_legend(show_legend=True)
    legend.display_mode(common.LegendDisplayMode.LIST).placement(common.LegendPlacement.BOTTOM)
    tooltip = common_builder.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    match panel.kind:
        case Kind.STAT:
            return (
                stat_builder.Panel()
                .color_mode(common.BigValueColorMode.VALUE)
                .graph_mode(common.BigValueGraphMode.NONE)
                .text_mode(common.BigValueTextMode.VALUE)
            )
        case Kind.TABLE:
            return table_builder.Panel().cell_height(common.TableCellHeight.SM)
        case Kind.LINES:
            return (
                lines_builder.Panel()
                .legend(legend)
                .tooltip(tooltip)
                .line_width(2)
                .show_points(common.VisibilityMode.AUTO)
                .span_nulls(span_nulls=3_600_000.0)
            )
        case Kind.BARS:
            bars = bars_builder.Panel().legend(legend).tooltip(tooltip).x_field("Time")
            bars = bars.show_value(common.VisibilityMode.NEVER)
            return bars.x_tick_label_max_length(10)  # the SDK says 0, and Grafana then says "..."
        case Kind.STATES:
            return (
                _States()
                .merge_values(merge_values=True)
                .show_value(common.VisibilityMode.AUTO)
                .legend(legend)
            )
        case Kind.MAP:
            return _map(panel)


def _map(panel: Panel) -> map_builder.Panel:
    """Return a map that shows all its points, each in the colour of the first field that says how it stands."""
    judged = [field for field in panel.fields if field.limits or field.values == "state"]
    style = {
        "color": {"field": judged[0].name, "fixed": "blue"},
        "opacity": 0.8,
        "size": {"fixed": 9, "min": 6, "max": 18},
        "symbol": {"fixed": "img/icons/marker/circle.svg", "mode": "fixed"},
    }
    points = (
        common_builder.MapLayerOptions()
        .type("markers")
        .name(panel.name)
        .location(
            common_builder.FrameGeometrySource()
            .mode(common.FrameGeometrySourceMode.COORDS)
            .latitude("lat")
            .longitude("lon")
        )
        .config({"showLegend": False, "style": style})
        .tooltip(tooltip=True)
    )
    ground = common_builder.MapLayerOptions().type("default").name("map")
    view = map_builder.MapViewConfig().id("fit").all_layers(all_layers=True).zoom(17).padding(10)
    return map_builder.Panel().view(view).basemap(ground).layers([points])
