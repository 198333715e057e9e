"""The manager's certificate, read anew when its agent has renewed it.

The agent replaces the files in one step (`TlsFiles`). A look at the file's identity costs microseconds, so each new
connection asks; nothing needs a restart.
"""

from __future__ import annotations

import logging

from swarm.errors import FailedPrecondition
from swarm.identity import TlsFiles, TlsMaterial

log = logging.getLogger(__name__)


class CertificateSource:
    """Call it for the newest key, certificate and CA certificate."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises FailedPrecondition where there is no certificate."""
        self._files = files
        self._identity = self._look()  # first: what replaces the files while they are read is noticed later
        self._material = files.read()

    def __call__(self) -> TlsMaterial:
        """The newest certificate; the last good one where the files cannot be read now."""
        try:
            identity = self._look()
            if identity != self._identity:
                self._material, self._identity = self._files.read(), identity
                log.info("the certificate was replaced by its agent")
        except FailedPrecondition as error:
            log.warning("the renewed certificate cannot be read, the last one stays in use: %s", error)
        return self._material

    def _look(self) -> tuple[int, int]:
        path = self._files.certificate
        try:
            status = path.stat()
        except OSError as error:
            raise FailedPrecondition(f"the certificate cannot be read: {path}: {error.strerror}") from error
        return status.st_ino, status.st_mtime_ns
