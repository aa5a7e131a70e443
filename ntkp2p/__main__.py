"""`python -m ntkp2p`."""

from ntkp2p.cli import main

main()
