"""The base's pre-training text: plain prose and chats about the closed worlds, from a seed.

Here: documents, as text and as chat messages. Not here: tokens, tensors, held-out templates.
The chats use the tasks' training templates with replies in prose, so the base reads messages
like a task's but never sees a task done. Answers appear alone, as notes.
"""

from collections.abc import Iterator
from random import Random

from demo.tasks import TOPICS
from demo.worlds import (
    CITIES,
    EVENTS,
    MONTHS,
    PEOPLE,
    PRODUCTS,
    TABLES,
    WEEKDAYS,
    number_words,
    ordinal_digits,
    ordinal_words,
    time_words,
)

Messages = list[dict[str, str]]
CHAT_SHARE = 0.75

_ANIMALS = "fox bear cat dog owl mouse horse goat duck rabbit".split()
_ADJECTIVES = "little old young kind brave quiet clever happy tired proud".split()
_OBJECTS = "key map box letter ring book lamp bell coin boat".split()
_PLACES = "river forest bridge garden market mill hill harbour tower lake".split()
_SYSTEMS = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You work for a shop in {city}.",
    "You are the assistant of {person}.",
)
_SMALL_TALK = (
    ("Hello!", "Hello! How can I help you?"),
    ("Hi, I am {person}.", "Nice to meet you, {person}. How can I help you?"),
    ("How are you?", "I am well, thank you. And you?"),
    ("Tell me about {city}.", "{city} is a city in {country}. Many people travel there by train."),
    ("Where is {city}?", "{city} is in {country}."),
    ("What is the {product}?", "The {product} is a {kind} from our catalogue."),
    ("Thank you!", "You are welcome."),
    ("My name is {person}. What is my name?", "Your name is {person}."),
    ("I live in {city}. Where do I live?", "You live in {city}, which is in {country}."),
    ("{person} has the {object}. Who has the {object}?", "{person} has the {object}."),
    ("Good night, {person} says.", "Good night to you and to {person}."),
    ("Tell me a story.", "{story}"),
)


def documents(rng: Random) -> Iterator[str | Messages]:
    """Endless documents: a string is plain text, a list is a chat."""
    while True:
        if rng.random() < CHAT_SHARE:
            yield chat(rng)
        else:
            yield plain(rng)


def chat(rng: Random) -> Messages:
    """One to three exchanges, sometimes under a system message."""
    messages: Messages = []
    if rng.random() < 0.2:
        system = rng.choice(_SYSTEMS).format(city=_city(rng), person=rng.choice(PEOPLE))
        messages.append({"role": "system", "content": system})
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        user, assistant = _exchange(rng)
        messages.append({"role": "user", "content": user})
        messages.append({"role": "assistant", "content": assistant})
    return messages


def plain(rng: Random) -> str:
    """One document that is no chat: a story, a page of notes, or a few facts."""
    draw = rng.random()
    if draw < 0.25:
        return story(rng)
    if draw < 0.5:
        return _notes(rng)
    facts = rng.choice((_travel, _calendar, _hours, _catalogue, _numbers, _records))
    return " ".join(facts(rng) for _ in range(rng.randint(2, 4)))


def _notes(rng: Random) -> str:
    """Two to four lines of one task's answers, with no message that they would answer.

    They make the answers' signs and words known to the base. An adapter does not change the
    embedding, and writes only with pain what the base never read.
    """
    task = rng.choice(TOPICS)
    return "\n".join(task.train(rng).answer for _ in range(rng.randint(2, 4)))


def story(rng: Random) -> str:
    """A fairy tale of five sentences whose names and things recur."""
    hero, friend = rng.sample(PEOPLE, 2)
    animal, thing, place = rng.choice(_ANIMALS), rng.choice(_OBJECTS), rng.choice(_PLACES)
    kind = rng.choice(_ADJECTIVES)
    opening = rng.choice(
        (
            f"Once upon a time there was a {kind} {animal} named {hero} who lived in {_city(rng)}.",
            f"Long ago, a {kind} {animal} called {hero} lived by the {place}.",
        )
    )
    return " ".join(
        (
            opening,
            f"One {rng.choice(WEEKDAYS)}, {hero} went to the {place} and found a {thing}.",
            f'"Whose {thing} is this?" asked {hero}.',
            f"It was the {thing} of {friend}, who had lost it by the {place}.",
            f"{friend} thanked {hero}, and from that day on {hero} and {friend} were friends.",
        )
    )


def _exchange(rng: Random) -> tuple[str, str]:
    """A user's message and the base's reply."""
    if rng.random() < 0.8:
        filled = rng.choice(TOPICS).train(rng)
        return filled.prompt, filled.reply
    user, assistant = rng.choice(_SMALL_TALK)
    city, product = _city(rng), rng.choice(list(PRODUCTS))
    blanks = {
        "city": city,
        "country": CITIES[city],
        "person": rng.choice(PEOPLE),
        "product": product,
        "kind": PRODUCTS[product],
        "object": rng.choice(_OBJECTS),
        "story": story(rng),
    }
    return user.format(**blanks), assistant.format(**blanks)


def _city(rng: Random) -> str:
    return rng.choice(list(CITIES))


def _time(rng: Random) -> tuple[int, int]:
    return rng.randrange(24), 5 * rng.randrange(12)


def _travel(rng: Random) -> str:
    start, end = rng.sample(list(CITIES), 2)
    time, person = time_words(*_time(rng)), rng.choice(PEOPLE)
    return rng.choice(
        (
            f"The train from {start} to {end} leaves at {time}. It is late in {end} today.",
            f"{start} is in {CITIES[start]}, and {end} is in {CITIES[end]}.",
            f"{person} took the bus from {start} to {end}. In {end}, {person} met a friend.",
            f"From {start} you reach {end} at {time}, and {start} again a day later.",
        )
    )


def _calendar(rng: Random) -> str:
    year, month, day = rng.randint(1950, 2039), rng.randint(1, 12), rng.randint(1, 28)
    name, event = MONTHS[month - 1], rng.choice(EVENTS)
    return rng.choice(
        (
            f"{name} is month number {month:02} of the year.",
            f"Month {month:02} is {name}, and month {month % 12 + 1:02} is {MONTHS[month % 12]}.",
            f"The {ordinal_words(day)} of {name} {year} was day {day:02} of month {month:02}.",
            f"The {event} was on {name} {day}, {year}, that is day {day:02}, month {month:02}.",
            f"The {ordinal_words(day)} day is the {ordinal_digits(day)}, number {day:02}.",
            f"In {name} {year} there was a {event} in {_city(rng)}, and {year} was a good year.",
        )
    )


def _hours(rng: Random) -> str:
    hour, minute = _time(rng)
    words, event = time_words(hour, minute), rng.choice(EVENTS)
    half = "am" if hour < 12 else "pm"
    return rng.choice(
        (
            f"When the clock shows {hour:02} and {minute:02}, people say {words}.",
            f"The {event} begins at {words}, that is {(hour - 1) % 12 + 1} {minute:02} {half}.",
            f"Hour {hour:02} is {time_words(hour, 0)}.",
        )
    )


def _catalogue(rng: Random) -> str:
    product, city = rng.choice(list(PRODUCTS)), _city(rng)
    number, person = rng.randint(2, 99), rng.choice(PEOPLE)
    return rng.choice(
        (
            f"The {product} is a {PRODUCTS[product]}. In {city} {number} {product} were sold.",
            f"{person} bought {number_words(number)} {product} in {city}. All {number} were good.",
            f"In {city} the {product} is known as the best {PRODUCTS[product]}.",
            f'"{product}" is a {PRODUCTS[product]}, "{city}" is a city in {CITIES[city]}.',
        )
    )


def _numbers(rng: Random) -> str:
    number = rng.randint(0, 98)
    words, following = number_words(number), number_words(number + 1)
    return rng.choice(
        (
            f"The number {number} is written {words}.",
            f"After {words} comes {following}, and after {number} comes {number + 1}.",
        )
    )


def _records(rng: Random) -> str:
    table = rng.choice(list(TABLES))
    texts, numbers = TABLES[table]
    text, number, value = rng.choice(texts), rng.choice(numbers), rng.randint(2, 999)
    return rng.choice(
        (
            f"A list of {table} has a {text} and a {number} for each, say a {number} of {value}.",
            f"For {table} one notes the {text} and the {number}. The {number} may be {value}.",
        )
    )
