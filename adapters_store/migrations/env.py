"""What alembic runs around the steps: they share the connection that `upgrade` was given."""

from alembic import context

from adapters_store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    compare_type=True,
)
context.run_migrations()
