"""The conformance kit: watches one party from outside and says, requirement by requirement, what it saw.

    command         `onestreet conform ROLE`: exit status, reports to files; arguments: those of several roles
    judgement       what was kept, broken, not shown; report: the same as text, JSON, JUnit XML, HTML
    witness         the kit's own MQTT client; listening: what it sees, handed to a judge

Each role is a module of its name, with what it needs:

    device          conduct (message by message), pace (how long things may take), orders (commands)
    gateway         the same, and ledger (deliveries and receipts), cable (a connection to be cut)
    application     who commands, and whether it may
    ingest          traffic (what is sent) of cases and poison, receipts (what came back)
    broker          credentials, sessions (who is in), authentication (who gets in), authorization (who may what)
"""
