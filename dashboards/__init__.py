"""What operators see, as code: pages and alerts for Grafana in Taiwan's Chinese and in English, from one source.

| module | holds |
|---|---|
| influxql.py | queries: typed, quoted, bounded |
| texts.py | every word of the pages, in both languages |
| looks.py | units, colours, limits and the names of values |
| panels.py | what a page, a panel and a column of it are |
| pages/ | the pages themselves: tables of panels |
| grafana.py | the pages as Grafana's JSON: the one file that knows the foundation SDK |
| files.py | the JSON files that compose provisions |
| alerts.py, alert_texts.py, alert_files.py | rules of alerts, their words, and the files that Grafana provisions |
| judgement.py | what is wrong with a folder of pages; their queries on a real InfluxDB |
| publishing.py | pages to a running Grafana: the one file that knows grafana-client |
| command.py | `onestreet dashboards build`, `check`, `push` |
"""
