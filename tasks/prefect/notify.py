"""A notice to people: one small JSON to one address when a run fails, crashes, cannot decide, says little, or moves the model.

The address is in MECA_WEBHOOK or in the Webhook block `meca-notify` of the Prefect server (`flows.deploy` saves it there).
Nothing here delays a run for long or breaks it. `text` is made of fixed words and harmless names, so that a chat shows it as
text; what data may have named stands in fields of its own.
"""

import json
import logging
import os
import re
import socket
import ssl
import threading
from collections.abc import Mapping
from typing import Any

import httpx

from meca.errors import Inconclusive
from meca.text import plain
from tasks import environment
from tasks.prefect import summary

__all__ = ["BLOCK", "address_from_environment", "completed", "crashed", "failed", "masked", "post", "template"]

BLOCK = "meca-notify"
SCHEMA = "meca.notice/1"
WAIT = 5.0  # seconds for each step of a request
LONGEST = 10.0  # seconds for all of it; a server that answers a byte at a time holds no run up
TRIES = 2
SENDER = "meca-notify"  # the thread that sends
HEADERS = {"Content-Type": "application/json", "User-Agent": "meca"}
LENGTH = 1000  # characters of a message
WORDS = {
    "failed": "{flow} {run} failed on {host}",
    "crashed": "{flow} {run} crashed on {host}",
    "inconclusive": "{flow} {run} is inconclusive: nothing was removed",
    "weak": "{flow} {run} found nothing, but the test is weak there",
    "refused": "{flow} {run} was refused by a gate",
    "promoted": "{model} version {version} is {alias}",
}
SECRET = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|AUTH_STRING|_KEY|WEBHOOK", re.IGNORECASE)


def failed(flow: Any, flow_run: Any, state: Any) -> None:
    """Tell of a failure; of a gate that does not hold, as a refusal."""
    error = state.result(raise_on_failure=False)
    _tell("refused" if isinstance(error, Inconclusive) else "failed", flow, flow_run, str(error) or state.message)


def crashed(flow: Any, flow_run: Any, state: Any) -> None:
    """Tell of a crash that the process lived to see; for others, see `flows.deploy`."""
    _tell("crashed", flow, flow_run, state.message)


def completed(flow: Any, flow_run: Any, state: Any) -> None:
    """Tell of a verdict that decides nothing or says little, and of a promotion that moved the alias."""
    result = None if state.data is None else state.result(raise_on_failure=False)  # Prefect raises where there is nothing
    if not isinstance(result, Mapping):
        return
    if (verdict := result.get("verdict")) in ("inconclusive", "weak"):
        _tell(str(verdict), flow, flow_run, result.get("sentence", ""))
    elif result.get("moved") and "alias" in result:
        _tell("promoted", flow, flow_run, " ".join(result.get("warnings", ())), **{name: str(result[name]) for name in ("model", "version", "alias")})


def _tell(event: str, flow: Any, flow_run: Any, message: Any, **facts: str) -> None:
    address = _address()
    if not address:
        return
    names = {name: masked(value) for name, value in {"flow": flow.name, "run": flow_run.name, "host": socket.gethostname(), **facts}.items()}
    notice = {
        "schema": SCHEMA,
        "event": event,
        "text": "meca: " + WORDS[event].format(**{name: summary.plain(value, 60) for name, value in names.items()}),
        **{name: plain(value) for name, value in names.items()},
        "id": str(flow_run.id),
        "message": plain(masked(message), LENGTH),
    }
    post(address, notice)


def post(address: str, notice: Mapping[str, Any]) -> bool:
    """Send a notice and return whether it was taken; within `LONGEST` seconds, and without raising."""
    logger = logging.getLogger(__name__)
    taken: list[bool] = []
    why = ["no answer in time"]
    body = json.dumps(notice).encode()

    def send() -> None:
        for _ in range(TRIES):
            try:
                # A receiver that moves on is a wrong address: what is sent may be for its owner alone. So no redirect is followed.
                with httpx.stream("POST", address, content=body, headers=HEADERS, timeout=WAIT, verify=ssl.create_default_context()) as reply:
                    reply.raise_for_status()
                    taken.append(True)
                    return
            except Exception as error:  # whatever it is: the run goes on, and the message may hold the address
                why[0] = type(error).__name__

    if not address.startswith(("http://", "https://")):
        logger.warning("The notice was not sent: expected MECA_WEBHOOK to be an http:// or https:// address.")
        return False
    logging.getLogger("httpx").addFilter(_not_ours)
    thread = threading.Thread(target=send, daemon=True, name=SENDER)
    thread.start()
    thread.join(LONGEST)
    if not taken:
        logger.warning("The notice %r was not taken (%s).", notice.get("event"), why[0])
    return bool(taken)


def _not_ours(record: logging.LogRecord) -> bool:
    """Tell whether a record may be written: the library writes the address of each request, and of ours that is a secret."""
    return record.threadName != SENDER


def masked(text: Any) -> str:
    """Return text without the secrets of addresses and without the value of any variable that is named like one."""
    found = environment.without_secrets(str(text))
    named = [value for name, value in os.environ.items() if SECRET.search(name)]
    parts = {part for value in named for part in (value, value.partition(":")[2])}  # `user:password`
    for part in sorted((part for part in parts if len(part) >= 6), key=len, reverse=True):  # the longest first: one may hold another
        found = found.replace(part, "***")
    return found


def address_from_environment() -> str:
    """Return what MECA_WEBHOOK says, or nothing."""
    return os.environ.get("MECA_WEBHOOK", "").strip()


def _address() -> str:
    """Return the address of notices: the variable's, else the server's, else none."""
    if address := address_from_environment():
        return address
    from tasks.prefect.slots import server_url

    if server_url() is None:
        return ""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    try:
        with get_client(sync_client=True) as client:
            document = client.read_block_document_by_name(BLOCK, "webhook", include_secrets=True)
    except ObjectNotFound:
        return ""
    except Exception as error:  # a server that is away, old or ill: what there was to tell stands in its log
        logging.getLogger(__name__).warning("The Prefect server gave no address for notices (%s).", type(error).__name__)
        return ""
    return str(document.data.get("url", ""))


def template(event: str, message: str) -> str:
    """Return the notice as a template for an automation of the server, which knows the run but not its host."""
    fixed = {"schema": SCHEMA, "event": event, "text": "meca: a run crashed unseen", "message": message}
    fields = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in fixed.items()]
    fields += [
        f'"{name}": {{{{ {value} | tojson }}}}' for name, value in (("flow", "flow.name"), ("run", "flow_run.name"), ("id", "flow_run.id|string"))
    ]
    return "{" + ", ".join(fields) + "}"
