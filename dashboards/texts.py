"""Every word of the pages, in English and in Traditional Chinese as Taiwan writes it. Nothing else holds words.

Names of metrics, domains and incidents are the exchange's; the terms are those of docs/exchange/zh-TW.md.
"""

from __future__ import annotations

from datetime import date
from typing import Literal, NamedTuple, get_args

from dashboards.panels import Page, Panel
from exchange.air_quality_index import table_on
from exchange.dictionary import dictionary
from exchange.incident_kinds import CALLED

Language = Literal["zh-TW", "en"]
LANGUAGES: tuple[Language, ...] = get_args(Language)


class Text(NamedTuple):
    """The same in both languages."""

    en: str
    zh_tw: str


def say(key: str, language: Language) -> str:
    """Return a text. Raises: KeyError for one that is not written."""
    text = TEXTS[key]
    return text.zh_tw if language == "zh-TW" else text.en


def titles(page: Page, panel: Panel) -> tuple[str, str]:
    """Return the keys of a panel's title and of what it says of itself: the page's own, or those of all pages."""
    if panel.title:
        return panel.title, "chart.about"
    own = f"{page.name}.{panel.name}"
    key = own if own in TEXTS else f"panel.{panel.name}"
    about = f"{own}.about"
    return key, about if about in TEXTS else f"panel.{panel.name}.about"


[_TABLE] = [table for table in (table_on(date.max),) if table is not None]
"""The newest table of the air quality index."""

_PAGES = {
    "overview": Text("Overview", "總覽"),
    "overview.about": Text(
        "What is broken, since when, and what does it mean?", "哪裡壞了？從何時開始？代表什麼？"
    ),
    "streetlights": Text("Streetlights", "路燈"),
    "streetlights.about": Text(
        "Which lamps do not burn or burn by day, and what does a night cost?",
        "哪些路燈不亮、哪些白天亮著？一夜用多少電？",
    ),
    "parking": Text("Parking", "停車"),
    "parking.about": Text(
        "Where is there room, how full was it, and how long do people stay?",
        "哪裡有空位？多滿？停多久？",
    ),
    "air": Text("Air quality", "空氣品質"),
    "air.about": Text("How is the air, and where is it worst?", "空氣如何？哪裡最差？"),
    "gateways": Text("Gateways and ingest", "閘道器與收訊"),
    "gateways.about": Text(
        "Does what is measured arrive, how late, and what is lost on the way?",
        "量到的資料有沒有收到？晚了多久？途中少了多少？",
    ),
    "site": Text("One site", "單一場域"),
    "site.about": Text(
        "Which devices of this site are in trouble?", "這個場域有哪些設備出了問題？"
    ),
    "device": Text("One device", "單一設備"),
    "device.about": Text(
        "Is this device well, since when, and what does it say?",
        "這部設備是否正常？從何時開始？量到什麼？",
    ),
    "folder": Text("Town", "城市"),
    "this language": Text("English", "中文"),
    "pages": Text("Pages", "各頁"),
    "wall": Text("On a wall", "看板模式"),
    "to county": Text("This county", "查看此縣市"),
    "to site": Text("This site", "查看此場域"),
    "to device": Text("This device", "查看此設備"),
    "all": Text("All", "全部"),
    "variable.county": Text("Counties to look at", "要查看的縣市"),
    "variable.site": Text("Sites to look at", "要查看的場域"),
    "variable.device": Text("The device to look at", "要查看的設備"),
}

_COLUMNS = {
    "time": Text("Time", "時間"),
    "day": Text("Day", "日期"),
    "since": Text("Since", "起始時間"),
    "county": Text("County", "縣市"),
    "site": Text("Site", "場域"),
    "device": Text("Device", "設備"),
    "domain": Text("Domain", "領域"),
    "gateway": Text("Gateway", "閘道器"),
    "label": Text("Name", "名稱"),
    "asset": Text("Asset number", "財產編號"),
    "place": Text("Place", "位置"),
    "devices": Text("Devices", "設備數"),
    "state": Text("State", "狀態"),
    "age": Text("Last heard before", "距上次收到"),
    "flapping": Text(*CALLED["flapping"]),
    "open incidents": Text("Open incidents", "未結事件"),
    "kind": Text("What", "事件"),
    "open": Text("Still so", "是否未結"),
    "takes along": Text("Affected", "受影響設備"),
    "lasted": Text("Lasted", "持續時間"),
    "meaning": Text("What it means, what to do", "代表什麼、如何處理"),
    "completeness": Text("Completeness", "完整率"),
    "availability": Text("Availability", "妥善率"),
    "expected": Text("Expected", "應收筆數"),
    "received": Text("Received", "實收筆數"),
    "missing": Text("Missing", "缺少筆數"),
    "lamps out": Text("Lamps out", "不亮的路燈"),
    "day burners": Text("Burn by day", "白天亮著"),
    "cycling": Text("Go on and off", "忽明忽滅"),
    "burned by day": Text("Burned by day", "白天亮燈時間"),
    "burned": Text("Burned for", "亮燈時間"),
    "switchings": Text("Switchings", "開關次數"),
    "energy": Text("Energy of the night", "當夜用電"),
    "baseline": Text("Without dimming", "未調光之基準"),
    "saved": Text("Saved", "節電量"),
    "saved at least": Text("Saved at least", "節電量下限"),
    "saved at most": Text("Saved at most", "節電量上限"),
    "occupancy": Text("Occupied", "占用率"),
    "turnover": Text("Arrivals per bay", "每格周轉次數"),
    "median stay": Text("Half stay up to", "停車時間中位數"),
    "long stay": Text("9 of 10 stay up to", "九成停車時間不超過"),
    "stays": Text("Stays", "停車次數"),
    "aqi": Text("AQI", "空品指標 AQI"),
    "aqi mean": Text("Mean of stations", "AQI 各站平均"),
    **{
        f"index.{metric}": Text(f"{name}, index", f"{name} 副指標")
        for metric, name in (
            ("pm2_5", "PM2.5"),
            ("pm10", "PM10"),
            ("o3", "O3"),
            ("co", "CO"),
            ("so2", "SO2"),
            ("no2", "NO2"),
        )
    },
    "aqi indicative": Text("AQI, indicative only", "AQI（僅供參考）"),
    "aqi reference": Text("AQI, reference stations", "AQI（標準測站）"),
    "indicative": Text("Indicative only", "僅供參考"),
    "health.cpu": Text("Processor", "處理器"),
    "health.memory": Text("Memory", "記憶體"),
    "health.disk_free": Text("Free disk", "剩餘磁碟"),
    "health.outbox_depth": Text("Waiting", "待送"),
    "health.outbox_hours_left": Text("Hours left", "可存時數"),
    "health.dropped": Text("Dropped", "已捨棄"),
    "health.unreceipted": Text("No receipt", "未回條"),
    "health.uplink_rtt": Text("Round trip", "上傳往返"),
    "health.bus_errors": Text("Bus errors", "匯流排錯誤"),
    "health.clock_known": Text("Clock set", "時間已校正"),
    "health.clock_offset": Text("Clock offset", "時鐘偏差"),
    "result": Text("Result", "結果"),
    "reason": Text("Reason", "原因"),
    "readback": Text("Read back", "回讀值"),
    "command id": Text("Command", "命令編號"),
}

_VALUES = {
    "yes": Text("Yes", "是"),
    "no": Text("No", "否"),
    "state.up": Text("Up", "正常"),
    "state.late": Text("Late", "逾時"),
    "state.down": Text("Down", "失聯"),
    "state.unknown": Text("Unknown", "不明"),
    "state.maintenance": Text("Maintenance", "維護中"),
    "state.retired": Text("Retired", "已除役"),
    "incident.open": Text("Open", "未結"),
    "incident.over": Text("Over", "已結"),
    "lit.on": Text("On", "亮"),
    "lit.off": Text("Off", "熄"),
    "bay.free": Text("Free", "空位"),
    "bay.occupied": Text("Occupied", "占用"),
    "fault.none": Text("None", "無"),
    "fault.some": Text("Fault", "故障"),
    "aqi.beyond": Text("Above 500", "500 以上"),
    "command.accepted": Text("Accepted", "已接受"),
    "command.done": Text("Done", "已完成"),
    "command.failed": Text("Failed", "失敗"),
    "command.rejected": Text("Rejected", "已拒絕"),
    "command.expired": Text("Expired", "已逾期"),
    **{f"kind.{kind}": Text(*called) for kind, called in CALLED.items()},
    "kind.gateway_down.means": Text(
        "See to its power and network; devices may be well", "先查電源與網路；設備可能仍正常"
    ),
    "kind.gateway_gone.means": Text(
        "Give its devices another gateway, or retire them", "其下設備請改接其他閘道器，或除役"
    ),
    "kind.device_down.means": Text(
        "See to its power, wiring or battery", "先查設備電源、接線或電池"
    ),
    "kind.flapping.means": Text(
        "Loose contact, weak radio or failing battery", "接觸不良、訊號弱或電池將盡"
    ),
    "kind.row_clash.means": Text(
        "Two gateways read it, or its clock was set back", "兩部閘道器同時讀取，或時鐘曾調回"
    ),
    "kind.two_gateways.means": Text(
        "Two gateways speak for it: retire it at one", "兩部閘道器同時代言：請在其中一部除役"
    ),
}

_EMPTY = {
    "nothing is broken": Text("Nothing", "無"),
    "nothing is missing": Text("Nothing is missing", "沒有缺少"),
    "watch is silent": Text(
        "No news of the watch: see whether it runs", "沒有監看資料，請確認監看服務是否執行中"
    ),
    "no hours yet": Text("No hour is rolled up yet", "尚無小時統計"),
    "no days yet": Text("No day is rolled up yet", "尚無每日統計"),
    "no car parks": Text("No car parks", "沒有停車場計數器"),
    "no gateways": Text("No news of gateways", "沒有閘道器資料"),
    "no gateway sends this": Text("No gateway sends this", "沒有閘道器送出這項"),
    "not sent": Text("It does not send this", "此設備不送這項"),
    "no samples": Text("No samples today", "今日沒有樣本"),
    "no commands": Text("No commands", "沒有命令"),
}

_PANELS = {
    "panel.down": Text("Down", "失聯"),
    "panel.down.about": Text(
        "Devices silent for two of their intervals, on a radio for up to ten, though their gateway is well. Now.",
        "閘道器正常，但設備已超過兩個回報間隔沒有資料（無線設備最多十個）。目前數量。",
    ),
    "panel.unknown": Text("Unknown", "不明"),
    "panel.unknown.about": Text(
        "Devices whose gateway is down: they may be well. Now.",
        "閘道器失聯，其下設備狀態不明，可能仍正常。目前數量。",
    ),
    "panel.late": Text("Late", "逾時"),
    "panel.late.about": Text(
        "Devices silent for longer than two of their intervals, not yet counted as down. Now.",
        "超過兩個回報間隔沒有資料，但還不算失聯。目前數量。",
    ),
    "panel.devices": Text("Devices", "設備數"),
    "panel.devices.about": Text(
        "All registered devices of what is chosen above, those in maintenance included.",
        "上方所選範圍內所有已登錄的設備，含維護中。",
    ),
    "panel.completeness": Text("Completeness today", "今日完整率"),
    "panel.completeness.about": Text(
        "Since midnight: received, of received and missing; missing are those whose numbers were skipped. "
        "What gateways send later counts when it comes. A device that is silent all day is not in it.",
        "自零時起：實收 ÷（實收 + 缺少），缺少是依樣本編號跳過的筆數。稍後補送的收到時即計入；整天失聯的設備不計在內。",
    ),
    "panel.availability": Text("Availability today", "今日妥善率"),
    "panel.availability.about": Text(
        "Time up, of the time up or down since midnight; unknown and maintenance are left out.",
        "自零時起，正常時間占正常與失聯時間之比率；不明與維護時間不計。",
    ),
    "panel.broken": Text("Broken now: since when, what it means", "目前異常：起始時間與代表意義"),
    "panel.broken.about": Text(
        "Open incidents of the last 31 days, newest first, at most 200. One gateway is one incident, however "
        "many devices it takes along. What is broken for longer is in the figures, and on the page of its site.",
        "最近 31 天內發生的未結事件，新的在前，最多 200 筆。一部閘道器失聯只算一件，不論影響多少設備。"
        "更早發生的仍計入上方數字，並列在該場域頁面。",
    ),
    "panel.past": Text("Incidents in the time shown", "所選期間的事件"),
    "panel.past.about": Text(
        "What began in the time shown, over or not, at most 200.",
        "於所選期間發生的事件，不論是否已結，最多 200 筆。",
    ),
    "panel.map": Text("Map of sites", "場域地圖"),
    "panel.map.about": Text(
        "Sites at the middle of their devices: red where a device is down, else violet where one is unknown. Now.",
        "以場域內設備的中心位置標示；有設備失聯時為紅色，否則有設備狀態不明時為紫色。目前狀態。",
    ),
    "panel.history": Text("In trouble over time", "異常設備數變化"),
    "panel.history.about": Text(
        "Of each site the most devices that were down, unknown or late at once in each hour.",
        "各場域每小時同時失聯、不明或逾時的最多設備數，加總。",
    ),
    "panel.sites": Text("Sites now", "各場域現況"),
    "panel.sites.about": Text(
        "One row a site and domain; completeness and availability are today's so far.",
        "每個場域與領域一列；完整率與妥善率為今日至目前。",
    ),
    "panel.days": Text("Completeness and availability by day", "每日完整率與妥善率"),
    "panel.days.about": Text(
        "Of each civil day; today's is not over. Received, of received and missing by their numbers; late samples "
        "still correct it. A device that is silent all day is in availability, not in completeness.",
        "以當地日曆日計算，今日尚未結束。完整率為實收 ÷（實收 + 依編號缺少），補送的樣本會更正；"
        "整天失聯的設備計入妥善率，不計入完整率。",
    ),
    "overview.incidents": Text("Open incidents", "未結事件"),
    "overview.incidents.about": Text(
        "However long ago they began. Causes, not devices: a gateway that takes 300 lamps along is one. Now.",
        "不論何時發生。以原因計數：一部閘道器影響 300 盞燈，也只算一件。目前數量。",
    ),
    "overview.counties": Text("Counties now", "各縣市現況"),
    "overview.counties.about": Text("Devices of each county by state.", "各縣市設備狀態統計。"),
    "overview.county days": Text("Counties today", "各縣市今日"),
    "overview.county days.about": Text(
        "Completeness and availability since midnight, over all samples of a county.",
        "自零時起，以全縣市所有樣本計算的完整率與妥善率。",
    ),
    "streetlights.lamps_out": Text("Lamps out", "不亮的路燈"),
    "streetlights.lamps_out.about": Text(
        "Lamps that should have burned in the newest night rolled up and did not, or say a fault.",
        "最近一個已統計的夜間，應亮而不亮或回報故障的路燈。",
    ),
    "streetlights.day_burners": Text("Burn by day", "白天亮著的路燈"),
    "streetlights.day_burners.about": Text(
        "Lamps that burned by day on the newest day rolled up: a stuck relay or a wrong clock.",
        "最近一個已統計的白天仍亮著的路燈，可能是繼電器黏住或時鐘不準。",
    ),
    "streetlights.cycling": Text("Go on and off", "忽明忽滅的路燈"),
    "streetlights.cycling.about": Text(
        "Lamps that switched far too often: they fail soon.",
        "開關次數異常的路燈，可能即將故障。",
    ),
    "streetlights.energy": Text("Energy of last night", "昨夜用電"),
    "streetlights.energy.about": Text(
        "By the lamps' counters, else from their power; the newest whole night: until noon it is the one before.",
        "以電表累計值計算，沒有時以功率估算；最近一個完整的夜間，中午之前仍為前一夜。",
    ),
    "streetlights.saved": Text("Saved last night", "昨夜節電量"),
    "streetlights.saved.about": Text(
        "Against the baseline of the same lamps without dimming; the two figures beside are its "
        "uncertainty.",
        "與同一批路燈未調光的基準相比；旁邊兩個數字為其不確定範圍。",
    ),
    "streetlights.saved_low": Text("Saved at least", "節電量下限"),
    "streetlights.saved_low.about": Text(
        "The low end of what was saved, by the baseline's uncertainty.",
        "依基準不確定度計算的節電量下限。",
    ),
    "streetlights.saved_high": Text("Saved at most", "節電量上限"),
    "streetlights.saved_high.about": Text(
        "The high end of what was saved, by the baseline's uncertainty.",
        "依基準不確定度計算的節電量上限。",
    ),
    "streetlights.out": Text("Lamps out, by lamp", "不亮的路燈清單"),
    "streetlights.out.about": Text(
        "Single lamps of the days rolled up last, at most 200.",
        "最近已統計各日的個別路燈，最多 200 筆。",
    ),
    "streetlights.by day": Text("Burned by day, by lamp", "白天亮著的路燈清單"),
    "streetlights.by day.about": Text(
        "Single lamps that burned by day for half an hour or more, where no other limit is set; at most 200.",
        "白天亮燈達半小時（未另設門檻時）的個別路燈，最多 200 筆。",
    ),
    "streetlights.energy by night": Text("Energy by night", "每夜用電"),
    "streetlights.energy by night.about": Text(
        "What the lamps took, and what they would have taken without dimming.",
        "實際用電，與未調光時應有的用電。",
    ),
    "streetlights.saved by night": Text("Saved by night", "每夜節電量"),
    "streetlights.saved by night.about": Text(
        "What was saved, between its low and its high end.", "節電量與其上下限。"
    ),
    "streetlights.faults by day": Text("Faults by day", "每日故障數"),
    "streetlights.faults by day.about": Text(
        "Lamps out, burning by day, and going on and off, of each day.",
        "每日不亮、白天亮著與忽明忽滅的路燈數。",
    ),
    "streetlights.nights": Text("Sites last night", "各場域昨夜"),
    "streetlights.nights.about": Text(
        "Faults of each site in the newest night, from midnight on as far as known; its energy after noon, "
        "the night before until then.",
        "各場域最近一夜的故障，自午夜起列出已知部分；用電在中午之後更新，在此之前為前一夜。",
    ),
    "parking.occupancy": Text("Fullest car park", "最滿的停車場"),
    "parking.occupancy.about": Text(
        "The highest occupancy of a site in its newest hour.", "各場域最近一小時占用率的最高值。"
    ),
    "parking.mean occupancy": Text("Mean occupancy", "平均占用率"),
    "parking.mean occupancy.about": Text(
        "The mean of all sites in their newest hour.", "各場域最近一小時占用率的平均。"
    ),
    "parking.occupancy now": Text("Occupancy by site", "各場域占用率"),
    "parking.occupancy now.about": Text("Of the newest hour rolled up.", "最近一個已統計的小時。"),
    "parking.lots": Text("Free places in car parks", "停車場空位"),
    "parking.lots.about": Text("As their counters say, now.", "停車場計數器目前回報的空位。"),
    "parking.occupancy by hour": Text("Occupancy by hour", "每小時占用率"),
    "parking.occupancy by hour.about": Text(
        "One line a site, 30 at most; single bays are not shown, on purpose.",
        "每個場域一條線，最多 30 條；為保護隱私，不顯示單一車位。",
    ),
    "parking.turnover by day": Text("Turnover by day", "每日周轉"),
    "parking.turnover by day.about": Text(
        "Arrivals per bay and day, mean of the sites.", "每格每日進車次數，各場域平均。"
    ),
    "parking.sites by day": Text("Sites, newest day", "各場域最近一日"),
    "parking.sites by day.about": Text(
        "Of each site's newest day; one that has counters only knows no arrivals at single bays.",
        "各場域最近一個已統計日；只有計數器的場域無法計算每格周轉。",
    ),
    "parking.stays by day": Text("Length of stay, newest day", "各場域最近一日停車時間"),
    "parking.stays by day.about": Text(
        "For days of five stays and more only: no car's diary can be read from it.",
        "僅在當日停車五次以上時顯示，避免辨識個別車輛。",
    ),
    "air.worst": Text("Worst AQI", "最高 AQI"),
    "air.worst.about": Text(
        "The highest index of a station in the newest hour. Of low-cost sensors: indicative only.",
        "最近一小時各測站的最高指標。低成本感測器數值僅供參考。",
    ),
    "air.mean": Text("Mean AQI", "平均 AQI"),
    "air.mean.about": Text(
        "The mean of the sites' means in their newest hour; each site counts alike, however many stations it "
        "has. Of low-cost sensors: indicative only.",
        "最近一小時各場域平均值的平均，不論測站多少，各場域權重相同。低成本感測器數值僅供參考。",
    ),
    "air.aqi by site": Text("AQI by site", "各場域 AQI"),
    "air.aqi by site.about": Text(
        f"The index of {_TABLE.en}, by the table of {_TABLE.effective}; colours are its bands. Indicative: a "
        "low-cost sensor is among the site's stations.",
        f"依{_TABLE.zh_tw}（{_TABLE.effective} 起適用之對照表）計算，顏色為其分級。"
        "「僅供參考」表示該場域測站含低成本感測器。",
    ),
    "air.aqi by hour": Text("AQI by hour", "每小時 AQI"),
    "air.aqi by hour.about": Text(
        "One line a site, its worst station; 30 at most, and 30 that are indicative, whose names say so. "
        f"By the table of {_TABLE.effective}.",
        "每個場域一條線，取其最差測站；最多 30 條，另有僅供參考者最多 30 條，名稱中註明。"
        f"依 {_TABLE.effective} 起適用之對照表。",
    ),
    "air.pm2_5": Text("PM2.5", "細懸浮微粒 PM2.5"),
    "air.pm2_5.about": Text(
        "Means of hours, a line a site, 30 at most.", "小時平均，每個場域一條線，最多 30 條。"
    ),
    "air.pm10": Text("PM10", "懸浮微粒 PM10"),
    "air.pm10.about": Text(
        "Means of hours, a line a site, 30 at most.", "小時平均，每個場域一條線，最多 30 條。"
    ),
    "air.temperature": Text("Temperature", "溫度"),
    "air.temperature.about": Text(
        "Means of hours, a line a site, 30 at most.", "小時平均，每個場域一條線，最多 30 條。"
    ),
    "air.humidity": Text("Relative humidity", "相對濕度"),
    "air.humidity.about": Text(
        "Means of hours, a line a site, 30 at most. Optical sensors read high in humid air.",
        "小時平均，每個場域一條線，最多 30 條。潮濕時光學感測器讀值偏高。",
    ),
    "air.stations": Text("Stations, last two hours", "各測站最近兩小時"),
    "air.stations.about": Text(
        "The 200 worst of the last two hours that are over: the index and the part of each pollutant, by the table "
        f"of {_TABLE.effective}. Indicative: a low-cost sensor, not a reference.",
        "最近兩個完整小時指標最高的 200 站：指標與各污染物副指標，"
        f"依 {_TABLE.effective} 起適用之對照表。「僅供參考」表示低成本感測器，並非標準測站。",
    ),
    "air.aqi by day": Text("Worst AQI by day", "每日最高 AQI"),
    "air.aqi by day.about": Text(
        "Over all sites chosen: those of reference stations, and those whose index is indicative. By the table of "
        f"{_TABLE.effective}.",
        f"所選各場域的最高值，分為標準測站與僅供參考兩類。依 {_TABLE.effective} 起適用之對照表。",
    ),
    "gateways.outbox_depth": Text("Samples waiting", "待送樣本"),
    "gateways.outbox_depth.about": Text(
        "What gateways keep and have not sent: nothing is lost, but late. Of those heard of now.",
        "閘道器暫存而未送出的樣本：沒有遺失，只是晚到。僅計目前連線的閘道器。",
    ),
    "gateways.outbox_hours_left": Text("Shortest time left", "最短可離線時數"),
    "gateways.outbox_hours_left.about": Text(
        "How long the fullest gateway can still keep samples while it is cut off.",
        "最滿的閘道器在斷線時還能保存多久。",
    ),
    "gateways.dropped": Text("Dropped", "已捨棄樣本"),
    "gateways.dropped.about": Text(
        "Samples that full gateways had to drop, since each began: these are lost, and counted.",
        "閘道器暫存已滿而捨棄的樣本，自其開始累計：已遺失，且有計數。",
    ),
    "gateways.uplink_rtt": Text("Slowest way to the store", "最慢上傳往返"),
    "gateways.uplink_rtt.about": Text(
        "From a gateway to the store and back as a receipt: how far ingest lags.",
        "由閘道器送達資料庫並收到回條的時間，可看出收訊服務是否落後。",
    ),
    "gateways.states": Text("Gateways", "閘道器狀態"),
    "gateways.states.about": Text("How each stands, and since when.", "各閘道器狀態與起始時間。"),
    "gateways.health": Text("Health of gateways", "閘道器健康狀況"),
    "gateways.health.about": Text(
        "What each said of itself last, within a quarter of an hour.",
        "各閘道器最近 15 分鐘內的回報。",
    ),
    "gateways.backlog": Text("Samples waiting, by site", "各場域待送樣本"),
    "gateways.backlog.about": Text(
        "The fullest gateway of each site in each hour that is over, 30 sites at most.",
        "各場域每小時待送最多的閘道器，最多 30 個場域；不含未結束的小時。",
    ),
    "gateways.delay": Text("Way to the store, by site", "各場域上傳往返"),
    "gateways.delay.about": Text(
        "The slowest gateway of each site in each hour that is over, 30 sites at most.",
        "各場域每小時最慢的閘道器，最多 30 個場域；不含未結束的小時。",
    ),
    "gateways.arrived": Text("Samples by day", "每日樣本數"),
    "gateways.arrived.about": Text(
        "Received and missing of each civil day, of all devices.",
        "每日實收與缺少的樣本，含所有設備。",
    ),
    "gateways.today": Text("Samples today, by site", "各場域今日樣本"),
    "gateways.today.about": Text("Expected, received, missing.", "應收、實收與缺少筆數。"),
    "site.troubled": Text("Devices in trouble", "異常設備"),
    "site.troubled.about": Text(
        "Every device of this site that is not up, with the time since its newest sample.",
        "此場域內所有非正常的設備，以及距最新樣本的時間。",
    ),
    "site.map": Text("Map of devices", "設備地圖"),
    "site.map.about": Text(
        "Devices in the colour of their state; what is down lies above what is well.",
        "以顏色標示設備狀態；失聯的設備疊在正常的設備上方。",
    ),
    "site.incomplete": Text("Devices with gaps today", "今日資料不完整的設備"),
    "site.incomplete.about": Text(
        "Devices of which fewer than 98 % of the samples taken since midnight have come.",
        "自零時起完整率低於 98% 的設備。",
    ),
    "device.state": Text("State", "狀態"),
    "device.state.about": Text("As the watch judges it, now.", "監看服務目前的判定。"),
    "device.since": Text("Since", "起始時間"),
    "device.since.about": Text("When this state began.", "此狀態開始的時間。"),
    "device.age": Text("Last heard before", "距上次收到"),
    "device.age.about": Text("Time since its newest live sample.", "距最新一筆即時樣本的時間。"),
    "device.gateway": Text("Its gateway", "所屬閘道器"),
    "device.gateway.about": Text(
        "Where it is down, nothing is known of the device.", "閘道器失聯時，設備狀態不明。"
    ),
    "device.states": Text("State over time", "狀態變化"),
    "device.states.about": Text(
        "Red is down, violet unknown. A lamp that tells its own faults has a line for each,"
        " empty where it was silent for 3 h.",
        "紅色為失聯，紫色為不明。會回報自身故障的路燈，每種故障各有一列，超過 3 小時未回報處留白。",
    ),
    "device.measured": Text("What it measures", "主要量測值"),
    "device.measured.about": Text(
        "The main metrics of its domain; all of them are below, by domain.",
        "所屬領域的主要量測項目；全部項目在下方依領域展開。",
    ),
    "device.incidents": Text("Its incidents", "此設備的事件"),
    "device.incidents.about": Text(
        "Of a year, newest first. Where its gateway was the cause, look at the gateway.",
        "一年內，新的在前。若原因是閘道器，請查看閘道器。",
    ),
    "device.commands": Text("Commands", "命令"),
    "device.commands.about": Text("What it was told, and what became of it.", "下達的命令與結果。"),
    "chart.about": Text(
        "All metrics of this unit that the device sends.", "此設備傳送的同單位量測項目。"
    ),
}

_QUANTITIES = {
    "quantity.states": Text("States", "狀態"),
    "quantity./": Text("Power factor", "功率因數"),
    "quantity./100": Text("Shares", "百分比"),
    "quantity.A": Text("Currents", "電流"),
    "quantity.V": Text("Voltages", "電壓"),
    "quantity.W": Text("Powers", "功率"),
    "quantity.Wh": Text("Energies", "電量"),
    "quantity.var": Text("Reactive powers", "無效功率"),
    "quantity.count": Text("Counts", "數量"),
    "quantity.ms": Text("Times", "時間"),
    "quantity.ppb": Text("Gases", "氣體"),
    "quantity.ug/m3": Text("Particles and vapours", "微粒與揮發物"),
}

TEXTS = (
    _PAGES
    | _COLUMNS
    | _VALUES
    | _EMPTY
    | _PANELS
    | _QUANTITIES
    | {f"domain.{name}": Text(one.en, one.zh_tw) for name, one in dictionary().items()}
    | {
        f"metric.{domain}.{name}": Text(metric.en, metric.zh_tw)
        for domain, one in dictionary().items()
        for name, metric in one.metrics.items()
    }
)
