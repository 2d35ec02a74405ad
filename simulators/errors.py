"""What can go wrong while hosting a simulated town.

OnestreetError
└── SimulatorError    a line, a bus or a daemon of the simulation could not be hosted
"""

from __future__ import annotations

from exchange.errors import OnestreetError


class SimulatorError(OnestreetError):
    """A line, a bus or a daemon of the simulation could not be hosted."""
