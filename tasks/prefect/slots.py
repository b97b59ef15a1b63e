"""The limit of one host for stages that need a GPU, kept by the Prefect server that several flows share."""

import contextlib
from collections.abc import Iterator

from tasks import environment

__all__ = ["LEASE", "gpu_slot", "server_url"]

LEASE = 120.0  # seconds for which a killed process still holds its slot; the living renew theirs after three quarters of it


def server_url() -> str | None:
    """Return the address of the Prefect server in force (variable or profile), None for the one inside the process."""
    environment.prepare()
    from prefect.settings import get_current_settings

    return get_current_settings().api.url


@contextlib.contextmanager
def gpu_slot() -> Iterator[None]:
    """Hold this host's slot `gpu:<host>` while the block runs.

    Without a server there is nobody to share with. With one, the limit is made (one slot) where the host has a GPU and
    nobody has made it yet; a host without a GPU waits only for a limit that somebody made on purpose.
    """
    name = environment.gpu_limit()
    if name is None or server_url() is None:
        yield
        return
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.concurrency.sync import concurrency
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    exists = True
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            exists = environment.has_gpu()
            if exists:
                with contextlib.suppress(ObjectAlreadyExists):  # another flow was quicker
                    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    if not exists:
        yield
        return
    # strict: a limit that vanishes in between is an error, never a silent double booking. But what has begun goes on when
    # the server is away for longer than the lease: the work of hours is worth more than the order of two runs.
    with concurrency(name, occupy=1, strict=True, lease_duration=LEASE, raise_on_lease_renewal_failure=False):
        yield
