"""Links: the serial line, the Modbus bus and the Bluetooth radio, one file per foreign library."""
