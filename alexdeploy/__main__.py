"""The program: `alexdeploy`, and `python -m alexdeploy`."""

from __future__ import annotations

import signal


def main() -> None:
    # Nothing is to be saved yet: until the command line listens, Ctrl-C ends the process without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from alexdeploy.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
