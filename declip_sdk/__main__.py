"""``python -m declip_sdk`` is ``declip``, for where the script is not on the path."""

from .cli import main

main()
