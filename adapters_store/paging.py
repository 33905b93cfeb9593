"""Pages of rows by age, for tables whose rows have `created_at` and an `id` that settles ties."""

from typing import Any

from sqlalchemy import Select, Table, select, tuple_


def by_age(table: Table, *, limit: int, behind: Any = None, forward: bool = False) -> Select[Any]:
    """Up to `limit` rows and one more, which says that others follow; the newest first.

    With `forward` the oldest first. `behind`: the row, or its record, that the last page ended at.
    """
    age = table.c.created_at, table.c.id
    query = select(table).limit(limit + 1)
    query = query.order_by(*(column.asc() if forward else column.desc() for column in age))
    if behind is None:
        return query
    row, last = tuple_(*age), tuple_(behind.created_at, behind.id)
    return query.where(row > last if forward else row < last)
