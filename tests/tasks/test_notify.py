"""A notice arrives whole, holds no secret, and neither delays nor breaks what it tells of."""

import json
import logging
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from meca.errors import Inconclusive, MecaError
from tasks import environment
from tasks.prefect import notify
from tests.integration.small import receiver

environment.prepare()

HOSTILE = "<!channel> *x* \x1b[31m\u202egnp.exe\n@here"


def told(hook: Any, state: Any, name: str = "run-1", monkeypatch: Any = None, **server: Any) -> list[Any]:
    with receiver(**server) as (address, taken):
        monkeypatch.setenv("MECA_WEBHOOK", address)
        hook(SimpleNamespace(name="sanitize"), SimpleNamespace(name=name, id="7"), state)
    return taken


def failed_with(error: Exception) -> Any:
    from prefect.states import Failed

    return Failed(data=error, message=f"Flow run encountered an exception: {error}")


def test_a_failure_is_told_with_its_reason(monkeypatch):
    [notice] = told(notify.failed, failed_with(MecaError("the disk is full")), monkeypatch=monkeypatch)
    assert notice["event"] == "failed"
    assert (notice["schema"], notice["flow"], notice["run"], notice["id"]) == ("meca.notice/1", "sanitize", "run-1", "7")
    assert notice["message"] == "the disk is full"
    assert notice["text"].startswith("meca: sanitize run-1 failed on ")


def test_a_gate_that_does_not_hold_is_a_refusal_and_no_failure(monkeypatch):
    [notice] = told(notify.failed, failed_with(Inconclusive("acc 0.5 is below 0.9")), monkeypatch=monkeypatch)
    assert (notice["event"], notice["message"]) == ("refused", "acc 0.5 is below 0.9")


def test_a_crash_is_told(monkeypatch):
    from prefect.states import Crashed

    [notice] = told(notify.crashed, Crashed(message="SIGTERM"), monkeypatch=monkeypatch)
    assert (notice["event"], notice["message"]) == ("crashed", "SIGTERM")


@pytest.mark.parametrize(
    ("result", "event", "message"),
    [
        ({"verdict": "inconclusive", "sentence": "No answer can be defended."}, "inconclusive", "No answer can be defended."),
        ({"verdict": "weak", "sentence": "The test is weak here."}, "weak", "The test is weak here."),
        ({"verdict": "no_evidence", "sentence": "Nothing."}, None, None),
        ({"model": "clean", "version": 3, "alias": "champion", "moved": True}, "promoted", ""),
        ({"model": "clean", "version": 3, "alias": "champion", "moved": True, "warnings": ["Judged at 32 px."]}, "promoted", "Judged at 32 px."),
        ({"model": "clean", "version": 3, "alias": "champion", "moved": False}, None, None),
        ({"verdict": "poisoned", "sentence": "5 of 100"}, None, None),
        ({"cells": 3}, None, None),
        (None, None, None),
    ],
)
def test_of_what_ends_well_only_the_undecided_the_weak_and_the_promoted_is_told(monkeypatch, result, event, message):
    from prefect.states import Completed

    notices = told(notify.completed, Completed(data=result), monkeypatch=monkeypatch)
    assert [(notice["event"], notice["message"]) for notice in notices] == ([(event, message)] if event else [])
    if event == "promoted":
        assert notices[0]["text"] == "meca: clean version 3 is champion"
        assert (notices[0]["model"], notices[0]["version"], notices[0]["alias"]) == ("clean", "3", "champion")


def test_no_secret_leaves_in_a_notice(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-aws-secret")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-mlflow")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:canary-prefect")
    error = MecaError("https://me:canary-url@host/x?sig=canary-query canary-aws-secret canary-mlflow canary-prefect")
    [notice] = told(notify.failed, failed_with(error), name="canary-aws-secret", monkeypatch=monkeypatch)
    assert "canary" not in json.dumps(notice)
    assert notice["run"] == "***"


def test_a_name_is_text_and_no_markup_or_second_line(monkeypatch):
    [notice] = told(notify.failed, failed_with(MecaError(HOSTILE)), name=HOSTILE, monkeypatch=monkeypatch)
    assert not set(notice["text"]) & set("<>*@\x1b\n\u202e!`&[]")
    for name in ("run", "message"):
        assert not set(notice[name]) & set("\x1b\n\u202e")


@pytest.mark.parametrize("server", [{"status": 500}, {"delay": 60}, {"drips": True}], ids=["error", "hangs", "drips"])
def test_a_receiver_that_fails_costs_seconds_and_nothing_else(monkeypatch, caplog, server):
    monkeypatch.setattr(notify, "WAIT", 0.5)
    monkeypatch.setattr(notify, "LONGEST", 2.0)
    started = time.monotonic()
    with receiver(**server) as (address, _):
        assert notify.post(address + "?token=canary", {"event": "failed"}) is False
    assert time.monotonic() - started < 15, "longer than any of its limits, shorter than the server drips"
    assert "was not taken" in caplog.text
    assert "canary" not in caplog.text


def test_the_address_is_in_no_log_however_much_is_logged(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    with receiver() as (address, taken), receiver(status=500) as (broken, _):
        assert notify.post(address + "/canary?token=canary", {"event": "failed"}) is True
        assert notify.post(broken + "/canary?token=canary", {"event": "failed"}) is False
        httpx.get(address + "?other", trust_env=False)
    assert taken[0] == {"event": "failed"}
    assert "canary" not in caplog.text and "?other" in caplog.text, "what others ask for is logged as before"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_notice_goes_nowhere_else(monkeypatch, status):
    with receiver() as (elsewhere, taken), receiver(status=status, location=elsewhere) as (address, _):
        assert notify.post(address, {"event": "failed"}) is False
    assert taken == []


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://host/x", "no address", "http://127.0.0.1:9/x", "http://[", "http://\x00"])
def test_an_address_that_is_none_raises_nothing(monkeypatch, address):
    monkeypatch.setattr(notify, "WAIT", 0.5)
    monkeypatch.setattr(notify, "LONGEST", 2.0)
    assert notify.post(address, {"event": "failed"}) is False


def test_without_an_address_and_a_server_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("MECA_WEBHOOK", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(notify, "post", lambda *_: pytest.fail("something was sent"))
    notify.failed(SimpleNamespace(name="sanitize"), SimpleNamespace(name="run", id="7"), failed_with(MecaError("why")))


def test_a_prefect_server_that_is_away_breaks_nothing(monkeypatch, caplog):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.delenv("MECA_WEBHOOK", raising=False)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        notify.failed(SimpleNamespace(name="sanitize"), SimpleNamespace(name="run", id="7"), failed_with(MecaError("why")))
    assert "no address" in caplog.text
