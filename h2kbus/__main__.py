"""`python -m h2kbus`."""

from h2kbus.cli.app import main

main()
