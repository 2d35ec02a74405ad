"""Settings of every test."""

import pytest
from hypothesis import settings

# How long an example takes says more about the machine than about the code; a failure prints how to repeat it.
settings.register_profile("onestreet", deadline=None, print_blob=True)
settings.load_profile("onestreet")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that are allowed more time than others: a long one at the end would run alone."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)
