"""`python -m codecllm.cli`, where the script is not on PATH."""

from . import main

main()
