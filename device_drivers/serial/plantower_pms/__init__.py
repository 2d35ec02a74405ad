"""Plantower PMS: optical particulate sensors on a serial line."""
