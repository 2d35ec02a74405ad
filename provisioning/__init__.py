"""A town's keys, accounts, broker and store, made from the town's file."""
