"""The whole path in one command: a simulated town, an agent, a broker, ingest and a store, and the audit at the end."""
