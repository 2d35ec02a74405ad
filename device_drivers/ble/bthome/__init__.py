"""BTHome v2: an open format of Bluetooth advertisements, used by many makers."""
