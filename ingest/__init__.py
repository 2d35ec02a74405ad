"""Ingest: MQTT in; judged, stored or quarantined, receipted; and the watch over what should come."""
