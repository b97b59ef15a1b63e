"""Read the source that params.yaml names, and write the one store that all other stages start from."""

import sys

from meca.data.decoder.pool import Decoder
from meca.data.ingest import read_source
from meca.data.readers import IngestParams
from meca.stages.graph import Output
from meca.stages.runtime import Context, main


def run(ctx: Context, out: Output, *, ingest: IngestParams) -> None:
    """Write the store."""
    decoder = Decoder()
    with ctx.timed("read"):
        info = read_source(ingest, ctx.seed, out, ctx.progress, decoder)
    ctx.sandbox = decoder.level
    ctx.metrics |= {"n_train": info.n_train, "n_test": info.n_test, "quarantined": info.quarantined}


if __name__ == "__main__":
    main(sys.modules[__name__])
