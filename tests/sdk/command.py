"""Ways to run ``declip``: in this process, in another one, and in a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TINY = Path(__file__).parents[1] / "data" / "tiny.engine"
DECLIP = [sys.executable, "-m", "declip_sdk"]
# The fake backend needs no model, and what is tested here is not the model.
FAKE = ["--engine", str(TINY), "--backend", "fake"]


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start ``declip`` with pipes."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*DECLIP, *map(str, arguments)], **{**pipes, **options})


def in_terminal(*arguments: str | Path, columns: int = 100, cwd: Path | None = None) -> tuple[int, str]:
    """Run ``declip`` in a terminal of that width; return the exit code and everything it wrote there."""
    import fcntl
    import pty
    import struct
    import termios

    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "CI")}
    environment |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    process = start(*arguments, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, cwd=cwd)
    os.close(terminal)
    seen = b""
    while True:
        try:
            chunk = os.read(main, 1 << 16)
        except OSError:  # Linux: the other end was closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(main)
    return process.wait(), seen.decode().replace("\r\n", "\n")
