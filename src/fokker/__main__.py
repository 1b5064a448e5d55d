"""`python -m fokker` is the command line."""

from .cli import main

main()
