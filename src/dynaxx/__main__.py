"""`python -m dynaxx` is `dynaxx`."""

from dynaxx.cli import main

main()
