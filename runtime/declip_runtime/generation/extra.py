"""The packages of the extra ``generate``: what is missing is named with the command that installs it."""

from __future__ import annotations

from declip_runtime.errors import BackendUnavailableError


def unavailable(libraries: str, error: BaseException) -> BackendUnavailableError:
    """The error for ``libraries`` of the extra that cannot be imported, ``error`` being why."""
    return BackendUnavailableError(
        f"generating pictures needs {libraries}, and an import fails ({' '.join(str(error).split())})."
        " Run: pip install 'declip-sdk[generate]'"
    )
