"""`python -m edge_agent CONFIG` runs the agent."""

import sys
from pathlib import Path

from edge_agent.agent import main
from exchange.errors import ConfigError

if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except ConfigError as error:
        sys.exit(str(error))
