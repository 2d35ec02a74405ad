"""Settings of every test."""

from hypothesis import settings

# How long an example takes says more about the machine than about the code; a failure prints how to repeat it.
settings.register_profile("onestreet", deadline=None, print_blob=True)
settings.load_profile("onestreet")
