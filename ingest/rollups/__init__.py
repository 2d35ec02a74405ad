"""Roll-ups: hour and day rows of devices and sites, made from raw rows and made anew when late ones come."""
