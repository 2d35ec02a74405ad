"""Intesis INMBSDAL: lamps behind a Modbus-DALI gateway."""
