"""Pytest fixtures for integrators: PTY lines, Modbus buses and a simulated BlueZ."""
