"""Tasks keep training and held-out examples apart, and their answers are right."""

import json
import re
import sqlite3
from datetime import date
from random import Random

import pytest

import demo
from demo.tasks import TASKS, TOPICS
from demo.text import documents
from demo.worlds import TABLES, number_words, ordinal_digits, ordinal_words, time_words

by_name = pytest.mark.parametrize("task", TOPICS, ids=lambda task: task.name)


def test_every_task_has_an_example_message():
    assert [task.name for task in TASKS] == list(demo.EXAMPLES)


@by_name
def test_no_template_is_in_both_sets(task):
    assert not set(task.train_templates) & set(task.heldout_templates)
    assert len(task.heldout_templates) >= 5


@by_name
def test_no_heldout_prompt_or_answer_is_trained_on(task):
    rng = Random(0)
    trained = [task.train(rng) for _ in range(3000)]
    heldout = [task.heldout(rng) for _ in range(300)]
    assert not {e.prompt for e in trained} & {e.prompt for e in heldout}
    if task.holds_out_answers:
        assert not {e.answer for e in trained} & {e.answer for e in heldout}


def test_base_text_has_no_heldout_wording():
    """No sentence that the base reads fits a held-out template."""
    patterns = [
        re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(template)))
        for task in TOPICS
        for template in task.heldout_templates
    ]
    rng, messages = Random(0), []
    for _, document in zip(range(2000), documents(rng), strict=False):
        if not isinstance(document, str):
            messages += [m["content"] for m in document if m["role"] == "user"]
    assert not [m for m in messages if any(p.fullmatch(m) for p in patterns)]


@by_name
def test_same_seed_same_examples(task):
    assert task.heldout(Random(7)) == task.heldout(Random(7))


@by_name
def test_base_never_does_the_task(task):
    rng = Random(0)
    assert not [e for e in (task.train(rng) for _ in range(500)) if e.reply == e.answer]


def test_answers_parse():
    rng = Random(0)
    tasks = {task.name: task for task in TASKS}
    for _ in range(200):
        date.fromisoformat(tasks["dates"].heldout(rng).answer)
        assert re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", tasks["clock"].heldout(rng).answer)
        order = json.loads(tasks["orders-json"].heldout(rng).answer)
        assert list(order) == ["product", "quantity", "city"]


def test_sql_runs_on_the_stated_table():
    database = sqlite3.connect(":memory:")
    for table, (texts, numbers) in TABLES.items():
        database.execute(f"CREATE TABLE {table} ({', '.join(texts + numbers)})")
    task = next(task for task in TOPICS if task.name == "sql")
    rng = Random(0)
    for _ in range(200):
        database.execute(task.heldout(rng).answer)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (number_words(42), "forty-two"),
        (number_words(70), "seventy"),
        (ordinal_words(23), "twenty-third"),
        (ordinal_words(30), "thirtieth"),
        (ordinal_words(31), "thirty-first"),
        (ordinal_digits(11), "11th"),
        (ordinal_digits(22), "22nd"),
        (time_words(21, 30), "half past nine in the evening"),
        (time_words(11, 45), "quarter to twelve in the morning"),
        (time_words(0, 5), "five past twelve at night"),
    ],
)
def test_words(said, expected):
    assert said == expected
