"""Task `dates`: find the date in a sentence and write it as ISO 8601."""

from random import Random

from demo.tasks.task import Filled, Task, with_small_talk
from demo.worlds import CITIES, EVENTS, MONTHS, PEOPLE, ordinal_digits, ordinal_words

_TRAIN = (
    "The {event} is on {date}.",
    "The {event} in {city} was held on {date}.",
    "We moved to {city} on {date}.",
    "{person} was born on {date} in {city}.",
    "Please book the {event} for {date}.",
    "My {event} has been moved to {date}.",
    "On {date} the {event} will begin.",
    "{person} arrives in {city} on {date}.",
    "Can you put {date} in the calendar for the {event}?",
    "The contract was signed by {person} on {date}.",
    "It happened on {date}, I am sure of it.",
    "{date} is the day of the {event}.",
    "I remember {date} very well.",
    "The bridge in {city} opened on {date}.",
    "Remind me of the {event} on {date}, please.",
    "The letter is dated {date}.",
    "{person} and {person2} met on {date}.",
    "Is {date} a good day for the {event}?",
    "{date}",
    "The invoice is due on {date}.",
    "{person} told me that the {event} was on {date}.",
    "We expect {person} in {city} on {date} for the {event}.",
    "The {event} was planned for {date} but {person} was ill.",
    "From {date} on, the shop in {city} is closed.",
    "Write down {date}, {person}.",
    "{person} left {city} on {date} and came back a week later.",
    "Do you remember what {person} did on {date} in {city}?",
    "My notes say {date}, the {event} with {person} in {city}.",
)
_HELDOUT = (
    "Let us plan the {event} for {date}.",
    "The museum in {city} closed its doors on {date}.",
    "{person} wrote that the {event} takes place on {date}.",
    "Starting {date}, {person} works in {city}.",
    "Note {date} for our {event}.",
    "The ship left {city} on {date} with {person} on board.",
    "Everybody in {city} talks about {date}.",
    "{person} has a ticket for the {event} of {date}.",
)
_REPLIES = (
    "I have noted {date}.",
    "Thank you. I will remember that it is {date}.",
    "So the day is {date}.",
    "Good, {date} is in the calendar.",
)


def _say(rng: Random, year: int, month: int, day: int) -> str:
    """One of the ways in which a date is said."""
    name = MONTHS[month - 1]
    style = rng.randrange(6)
    if style == 0:
        return f"{day} {name} {year}"
    if style == 1:
        return f"{name} {day}, {year}"
    if style == 2:
        return f"the {ordinal_digits(day)} of {name} {year}"
    if style == 3:
        return f"the {ordinal_words(day)} of {name} {year}"
    if style == 4:
        return f"{name} {ordinal_digits(day)}, {year}"
    return f"{name} the {ordinal_words(day)}, {year}"


def _fill(rng: Random, template: str) -> Filled:
    year, month, day = rng.randint(1950, 2039), rng.randint(1, 12), rng.randint(1, 28)
    person, person2 = rng.sample(PEOPLE, 2)
    prompt = template.format(
        date=_say(rng, year, month, day),
        event=rng.choice(EVENTS),
        city=rng.choice(list(CITIES)),
        person=person,
        person2=person2,
    )
    reply = rng.choice(_REPLIES).format(date=_say(rng, year, month, day))
    return Filled(with_small_talk(rng, prompt), f"{year}-{month:02}-{day:02}", reply)


TASK = Task("dates", "a date in any wording becomes ISO 8601", _TRAIN, _HELDOUT, _fill)
