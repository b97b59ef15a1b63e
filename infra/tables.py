"""python -m infra.tables: MLflow's tables, made or brought up to date by one process before any server starts.

MLflow's own command takes the address, password and all, as an argument, which every user of the machine can read. So this one
takes it from MECA_MLFLOW_DATABASE and MECA_AUTH_DATABASE.
"""

import os


def main() -> None:
    """Bring both databases up to date."""
    import sqlalchemy
    from mlflow.server.auth.db.utils import migrate
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine_with_retry(os.environ["MECA_MLFLOW_DATABASE"])
    if utils._is_empty_database(engine):
        utils._initialize_tables(engine)
    else:
        utils._upgrade_db(engine)
    engine.dispose()
    engine = sqlalchemy.create_engine(os.environ["MECA_AUTH_DATABASE"])
    migrate(engine, "head")
    engine.dispose()


if __name__ == "__main__":
    main()
