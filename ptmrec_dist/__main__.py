"""The command `ptmrec`, which is `python -m ptmrec_dist`, too, for launchers that start a module."""

import sys


def main() -> int:
    """Run `ptmrec` with the arguments of this process; Ctrl-C is one line even while the command line is being imported.

    Returns:
        The exit code.
    """
    try:
        from ptmrec_dist.cli import main as run

        return run()
    except KeyboardInterrupt:  # `run` says which command it was, once it has begun one
        print("ptmrec: interrupted; run the same command again", file=sys.stderr, flush=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
