"""Run the command line as a module: `accelerate launch -m hf_mu2.cli predict ...`."""

from . import main

main()
