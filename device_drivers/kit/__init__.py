"""What a driver is made of: protocols, the profile, the registry, the register table and the vectors."""
