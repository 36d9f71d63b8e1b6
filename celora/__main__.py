"""`python -m celora` is `celora`."""

from celora.cli import main

main()
