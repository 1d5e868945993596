"""The run file, its lock, the logs, and what is checked of the machine."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from firstlight.domain.errors import AlreadyRunning, DiskFull, InvalidSettings, LaunchError, PortTaken
from firstlight.launcher.gpu_host import host_config, host_ids
from firstlight.launcher.log_files import LARGEST_LOG_BYTES, open_log, tail
from firstlight.launcher.machine_checks import check_disk, check_port, prepare_state_dir
from firstlight.launcher.process_marks import ProcessMark
from firstlight.launcher.role_environment import role_environment
from firstlight.launcher.run_file import RunRecord, hold_lock, own_mark, read_run, run_path
from firstlight.settings import read_settings

RECORD = RunRecord(
    launcher=ProcessMark(7, "boot/1"),
    api_url="http://127.0.0.1:1",
    temporal_ui_url="http://127.0.0.1:2",
    is_ready=True,
    processes={"api": ProcessMark(8, "boot/2")},
)


def test_a_run_file_reads_back_what_was_written_and_is_private(tmp_path: Path) -> None:
    RECORD.write(tmp_path)
    assert read_run(tmp_path) == RECORD
    assert stat.S_IMODE(run_path(tmp_path).stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"launcher": 3, "processes": {}}'])
def test_a_run_file_that_is_not_one_counts_as_none(tmp_path: Path, text: str) -> None:
    run_path(tmp_path).write_text(text)
    assert read_run(tmp_path) is None


def test_the_second_launcher_of_a_state_dir_is_told_about_the_first(tmp_path: Path) -> None:
    RECORD.write(tmp_path)
    with hold_lock(tmp_path):
        told = r"pid 7, http://127\.0\.0\.1:1.*firstlight down"
        with pytest.raises(AlreadyRunning, match=told), hold_lock(tmp_path):
            pass
    with hold_lock(tmp_path):
        assert read_run(tmp_path) == RECORD


def test_own_mark_is_stable() -> None:
    assert own_mark() == own_mark()


def test_a_taken_port_is_named_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"port {port} .* FIRSTLIGHT_API_PORT"):
            check_port("127.0.0.1", port, setting="FIRSTLIGHT_API_PORT")
    check_port("127.0.0.1", port, setting="FIRSTLIGHT_API_PORT")


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(LaunchError, match="FIRSTLIGHT_API_PORT"):
        check_port("203.0.113.7", 8080, setting="FIRSTLIGHT_API_PORT")


def test_a_full_disk_is_said_with_both_figures(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"GB are free .* are needed"):
        check_disk(tmp_path, needed_bytes=1 << 60)


def test_a_state_dir_is_private_and_one_that_cannot_be_is_said(tmp_path: Path) -> None:
    prepare_state_dir(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match="FIRSTLIGHT_STATE_DIR"):
        prepare_state_dir(tmp_path / "file" / "b")


def test_a_long_log_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "api.log"
    with open_log(path) as log:
        log.write(b"old\n")
        log.truncate(LARGEST_LOG_BYTES + 1)
    with open_log(path) as log:
        log.write(b"one\ntwo\nthree\n")
    assert tail(path, 2) == "two\nthree"
    assert path.with_name("api.log.1").stat().st_size == LARGEST_LOG_BYTES + 1
    assert tail(tmp_path / "none.log", 3) == ""


def test_every_setting_reaches_a_role(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = read_settings(
        state_dir=tmp_path, api_port=1234, lease_s=3.5, api_keys="one,two", temporal_tls=True
    )
    for name, value in role_environment(given).items():
        if name.startswith("FIRSTLIGHT_"):
            monkeypatch.setenv(name, value)
    assert read_settings() == given


def test_host_ids_are_checked(tmp_path: Path) -> None:
    assert host_ids(read_settings(host_ids="a, b")) == ("a", "b")
    for wrong in ("", "a,a"):
        with pytest.raises(InvalidSettings, match="FIRSTLIGHT_HOST_IDS"):
            host_ids(read_settings(host_ids=wrong))


def test_a_host_keeps_its_state_under_the_state_dir(tmp_path: Path) -> None:
    settings = read_settings(state_dir=tmp_path, host_ids="a")
    config = host_config(settings, host_ids(settings)[0])
    assert Path(config.state_dir) == tmp_path / "hosts" / "a"
    assert [child.name for child in config.children] == ["host-agent"]
