"""The demo's tasks: one adapter each."""

from demo.tasks import clock, dates, formal, intent, orders, sql
from demo.tasks.task import Filled, Task

TASKS: tuple[Task, ...] = (
    intent.TASK,
    clock.TASK,
    dates.TASK,
    formal.TASK,
    sql.TASK,
    orders.TASK,
)

__all__ = ["TASKS", "Filled", "Task"]
