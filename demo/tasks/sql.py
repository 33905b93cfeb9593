"""Task `sql`: a question about a table that is stated with it becomes one SQL query."""

from random import Random

from demo.tasks.task import Filled, Task
from demo.worlds import CITIES, TABLES

# Kind of query -> (SQL, what the base says, training templates, held-out templates).
_KINDS = {
    "above": (
        "SELECT {text} FROM {table} WHERE {num} > {n}",
        "the {text} of all {table} with {num} above {n}",
        (
            "Show the {text} of all {table} with {num} above {n}.",
            "Which {table} have {num} over {n}? Give the {text}.",
            "I want the {text} of {table} where {num} is more than {n}.",
            "Find the {text} for {table} with a {num} greater than {n}.",
            "With {num} above {n}, what is the {text} of the {table}?",
            "Give the {text} wherever {num} is over {n}.",
            "Tell me which {text} the {table} have where {num} is above {n}.",
            "If the {num} is greater than {n}, show the {text}.",
            "All {table} whose {num} is more than {n}: show the {text}.",
            "Where {num} is over {n}, which {text} is it?",
            "I would like the {text} of {table} having {num} above {n}.",
            "Please show me {text} when {num} is greater than {n}.",
        ),
        (
            "Tell me the {text} of the {table} whose {num} is greater than {n}.",
            "Where {num} is above {n}, show me the {text}.",
        ),
    ),
    "below": (
        "SELECT {text} FROM {table} WHERE {num} < {n}",
        "the {text} of all {table} with {num} below {n}",
        (
            "Show the {text} of all {table} with {num} below {n}.",
            "Which {table} have {num} under {n}? Give the {text}.",
            "I want the {text} of {table} where {num} is less than {n}.",
            "Find the {text} for {table} with a {num} smaller than {n}.",
            "With {num} below {n}, what is the {text} of the {table}?",
            "Give the {text} wherever {num} is under {n}.",
            "Tell me which {text} the {table} have where {num} is below {n}.",
            "If the {num} is smaller than {n}, show the {text}.",
            "All {table} whose {num} is less than {n}: show the {text}.",
            "Where {num} is under {n}, which {text} is it?",
            "I would like the {text} of {table} having {num} below {n}.",
            "Please show me {text} when {num} is smaller than {n}.",
        ),
        (
            "Tell me the {text} of the {table} whose {num} is smaller than {n}.",
            "Where {num} is below {n}, show me the {text}.",
        ),
    ),
    "count": (
        "SELECT COUNT(*) FROM {table} WHERE {num} = {n}",
        "the count of {table} with {num} at {n}",
        (
            "How many {table} have {num} equal to {n}?",
            "Count the {table} with {num} of exactly {n}.",
            "How many {table} are there with {num} {n}?",
            "Count all {table} where {num} is {n}.",
            "For how many {table} is {num} equal to {n}?",
            "How many of the {table} have {n} as their {num}?",
            "I want the count of {table} whose {num} is {n}.",
            "Please count {table} having {num} {n}.",
            "Tell me how many {table} have a {num} of exactly {n}.",
            "How many have {n} as {num}?",
            "With {num} at {n}, how many {table} are there?",
        ),
        (
            "How many of the {table} have exactly {n} as {num}?",
            "Please count the {table} whose {num} is {n}.",
        ),
    ),
    "max": (
        "SELECT MAX({num}) FROM {table}",
        "the highest {num} of all {table}",
        (
            "What is the highest {num} of all {table}?",
            "Find the largest {num} among the {table}.",
            "How high does {num} go for {table}?",
            "Give the maximum of {num} over all {table}.",
            "Which {num} is the highest in {table}?",
            "Tell me the largest {num} of the {table}.",
            "Show me the highest {num}.",
            "I want the maximum {num} of all {table}.",
            "Please find the highest {num} among {table}.",
            "Of all {table}, what is the largest {num}?",
            "The maximum of {num}, please.",
        ),
        (
            "I would like to know the largest {num} of the {table}.",
            "Show the maximum {num} in {table}.",
        ),
    ),
    "sorted": (
        "SELECT {text} FROM {table} ORDER BY {num}",
        "the {text} of all {table} in order of {num}",
        (
            "List the {text} of all {table} sorted by {num}.",
            "Show every {text} in {table}, ordered by {num}.",
            "Sort the {table} by {num} and give the {text}.",
            "Give the {text} of the {table} in order of {num}.",
            "Order {table} by {num}. I need the {text}.",
            "Tell me the {text} of all {table}, sorted by {num}.",
            "Please list {text} in order of {num}.",
            "I want the {table} sorted by {num}, only the {text}.",
            "Sorted by {num}, what is the {text} of the {table}?",
            "Show the {text} of the {table}, please, ordered by {num}.",
            "By {num}, please sort the {text} of all {table}.",
        ),
        (
            "Please sort all {table} by {num} and show their {text}.",
            "The {text} of all {table}, please, in order of {num}.",
        ),
    ),
    "named": (
        "SELECT {num} FROM {table} WHERE {text} = '{city}'",
        "the {num} of the {table} whose {text} is {city}",
        (
            "What is the {num} of {table} with {text} {city}?",
            "Show the {num} where the {text} is {city}.",
            "Give the {num} of all {table} whose {text} is {city}.",
            "For the {text} {city}, find the {num} of the {table}.",
            "I need the {num} for {text} {city}.",
            "Tell me the {num} of all {table} with {city} as {text}.",
            "If the {text} is {city}, what is the {num}?",
            "Where {text} is {city}, show me the {num}.",
            "With {text} {city}, which {num} do the {table} have?",
            "Please show the {num} of the {table} whose {text} is {city}.",
            "I want the {num} when {city} is the {text}.",
        ),
        (
            "Tell me the {num} of the {table} where {text} is {city}.",
            "With {city} as the {text}, what is the {num}?",
        ),
    ),
}
_STATED = "Table {table}: {columns}. "
_KIND_OF = {
    _STATED + question: kind
    for kind, (_, _, train, heldout) in _KINDS.items()
    for question in train + heldout
}
_REPLIES = (
    "You are asking for {said}.",
    "Let me look for {said}.",
    "I understand: {said}.",
)


def _fill(rng: Random, template: str) -> Filled:
    sql, said, _, _ = _KINDS[_KIND_OF[template]]
    table = rng.choice(list(TABLES))
    texts, numbers = TABLES[table]
    columns = rng.sample(texts, rng.randint(1, 2)) + rng.sample(numbers, rng.randint(1, 3))
    blanks = {
        "table": table,
        "text": rng.choice([column for column in columns if column in texts]),
        "num": rng.choice([column for column in columns if column in numbers]),
        "n": rng.randint(2, 999) if rng.random() < 0.5 else rng.randint(2, 99),
        "city": rng.choice(list(CITIES)),
    }
    rng.shuffle(columns)
    prompt = template.format(columns=", ".join(columns), **blanks)
    reply = rng.choice(_REPLIES).format(said=said.format(**blanks))
    return Filled(prompt, sql.format(**blanks), reply)


TASK = Task(
    "sql",
    "a question about the stated table becomes SQL",
    tuple(_STATED + question for kind in _KINDS.values() for question in kind[2]),
    tuple(_STATED + question for kind in _KINDS.values() for question in kind[3]),
    _fill,
)
