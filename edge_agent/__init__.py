"""The agent on a gateway.

The way of a reading: buses (a driver's exchange) → attended (quality, report_by_exception) → intake → outbox → packs →
uplink, and its receipt back. The way of a command: uplink → commands (ledger) → buses (arbiter) → results → uplink.

| Where | What |
|---|---|
| agent, changes | puts everything together; what a reload has to begin anew |
| buses, arbiter, schedule, health | one task a bus: whose turn it is, when each device is asked, how it fares |
| attended, quality, report_by_exception | a device in service: what a value is worth, and whether it is worth sending |
| intake, outbox/, clock | what was taken is kept, named and dated until its receipt; what time it is |
| uplink, packs | the broker; what goes out next and how it is packed |
| commands, ledger, results, lighting | at most once, and what came of it; lamp programmes |
| trail | what was ordered and what came of it, as a document |
| states, gateway_device | what is retained of gateway and devices; the gateway as a device |
| status, snapshot, metrics | how the agent is: the document, where it comes from, Prometheus' text |
| config, config_reading, config_checks | edge.toml: its types, how it is read, what no type can say |
| inventory, advice | tables of devices; what is allowed and hardly meant |
| enrolment, scan | from a code to a certificate; what is connected |
| cli, enrolment_command, scan_command, status_command, trail_command | the command line |
| terminal_text | its columns, in which a Chinese character takes two |
"""
