"""The demo's tasks: what people write about in the base's text, and what adapters are for."""

from demo.tasks import clock, dates, formal, intent, orders, sql
from demo.tasks.task import Filled, Task

# What the base's chats are about.
TOPICS: tuple[Task, ...] = (
    intent.TASK,
    clock.TASK,
    dates.TASK,
    formal.TASK,
    sql.TASK,
    orders.TASK,
)

# Those with an adapter. Not sql: its adapter reached 0.79 on held-out templates.
TASKS: tuple[Task, ...] = tuple(task for task in TOPICS if task is not sql.TASK)

__all__ = ["TASKS", "TOPICS", "Filled", "Task"]
