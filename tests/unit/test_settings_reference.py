"""The reference of settings is what the code declares, and shows no secret."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from firstlight.settings import Settings, read_settings
from firstlight.settings_reference import MASK, markdown, setting_rows

PAGE = Path(__file__).parents[2] / "docs" / "operators" / "settings.md"


def test_the_page_is_what_the_code_declares() -> None:
    assert PAGE.read_text() == markdown(setting_rows(read_settings())), (
        "renew it: firstlight settings --markdown > docs/operators/settings.md"
    )


def test_every_setting_says_what_it_means_and_takes() -> None:
    for row in setting_rows(read_settings()):
        assert row.meaning.endswith("."), row
        assert row.kind, row
    kinds = {row.variable: row.kind for row in setting_rows(read_settings())}
    assert kinds["FIRSTLIGHT_LEASE_S"] == "seconds"
    assert kinds["FIRSTLIGHT_DRAM_CAPACITY_BYTES"] == "bytes"
    assert kinds["FIRSTLIGHT_DEFAULT_TRANSFER"] == "exact, tokens, fast"
    assert kinds["FIRSTLIGHT_RPC_TLS_DIR"] == "path"
    assert kinds["FIRSTLIGHT_PEER_SECRET"] == "secret"


def test_what_is_shown_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {name: f"hidden-{name}" for name, field in Settings.model_fields.items() if _is_secret(field)}
    assert len(secrets) >= 3
    for name, value in secrets.items():
        monkeypatch.setenv(f"FIRSTLIGHT_{name.upper()}", value)
    monkeypatch.setenv("FIRSTLIGHT_DATABASE_URL", "postgresql://me:hidden-password@db:5432/firstlight")
    command = [sys.executable, "-m", "firstlight.cli", "settings"]
    for options in ([], ["--json"], ["--set"]):
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
        assert "hidden" not in done.stdout
        assert MASK in done.stdout
    shown = json.loads(subprocess.run([*command, "--set", "--json"], capture_output=True, check=True).stdout)
    values = {row["variable"]: row["value"] for row in shown}
    assert values["FIRSTLIGHT_DATABASE_URL"] == f"postgresql+psycopg://me:{MASK}@db:5432/firstlight"


def _is_secret(field: object) -> bool:
    return "SecretStr" in str(getattr(field, "annotation", ""))
