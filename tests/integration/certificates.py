"""A certificate authority for tests, by the openssl program."""

from __future__ import annotations

import subprocess
from pathlib import Path


def openssl(*arguments: str, folder: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def certificate_folder(folder: Path, *, name: str = "firstlight") -> Path:
    """ca.pem, cert.pem and key.pem of a new authority, for `name`, localhost and 127.0.0.1."""
    folder.mkdir(parents=True)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl(
        "req", "-x509", *key, "-keyout", "ca-key.pem", "-out", "ca.pem", "-subj", "/CN=test", folder=folder
    )
    names = f"subjectAltName=DNS:{name},DNS:localhost,IP:127.0.0.1"
    openssl(
        *("req", "-x509", *key, "-keyout", "key.pem", "-out", "cert.pem", "-subj", f"/CN={name}"),
        *("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-addext", names, "-addext", "basicConstraints=CA:FALSE"),
        folder=folder,
    )
    return folder
