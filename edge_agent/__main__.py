"""`python -m edge_agent CONFIG` runs the agent."""

import sys

from edge_agent.cli import run
from exchange.errors import ConfigError, OnestreetError

if __name__ == "__main__":
    try:
        sys.exit(run(["run", *sys.argv[1:]]))
    except ConfigError as error:
        sys.stderr.write(f"configuration error 設定錯誤: {error}\n")
        sys.exit(2)
    except OnestreetError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
