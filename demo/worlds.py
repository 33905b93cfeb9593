"""The closed worlds that every demo text speaks about: names, calendars, tables.

Here: constants and how a number or an hour is said in words. Not here: sentences, randomness.
"""

# City -> country. Single words, so that most become one token.
CITIES = {
    "Oslo": "Norway",
    "Stockholm": "Sweden",
    "Helsinki": "Finland",
    "Hamburg": "Germany",
    "Berlin": "Germany",
    "Vienna": "Austria",
    "Zurich": "Switzerland",
    "Paris": "France",
    "Madrid": "Spain",
    "Lisbon": "Portugal",
    "Rome": "Italy",
    "Milan": "Italy",
    "Athens": "Greece",
    "Prague": "Czechia",
    "Dublin": "Ireland",
    "Kyoto": "Japan",
}

# Product -> what it is, as a catalogue would say.
PRODUCTS = {
    "Kestrel": "lamp",
    "Juniper": "desk",
    "Marlin": "kettle",
    "Cobalt": "bicycle",
    "Aurora": "lamp",
    "Falcon": "camera",
    "Indigo": "sofa",
    "Maple": "table",
    "Nimbus": "umbrella",
    "Onyx": "keyboard",
    "Raven": "backpack",
    "Velvet": "sofa",
}

PEOPLE = (
    "Anna Ben Clara David Emma Felix Greta Henry Ida Jonas Maria Olga Paul Rosa Victor Yusuf"
).split()

MONTHS = (
    "January February March April May June July August September October November December"
).split()

WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

EVENTS = (
    "meeting concert workshop exam wedding match lecture party interview dinner exhibition "
    "appointment delivery lesson race festival"
).split()

# Table -> its columns: (those that hold text, those that hold numbers).
TABLES = {
    "hotels": (("name", "city", "owner"), ("rooms", "stars", "price", "year")),
    "trains": (("name", "city", "driver"), ("seats", "speed", "year", "weight")),
    "books": (("title", "author", "language"), ("pages", "price", "year", "copies")),
    "players": (("name", "team", "country"), ("goals", "age", "height", "matches")),
    "shops": (("name", "city", "manager"), ("sales", "staff", "floors", "rating")),
    "ships": (("name", "port", "captain"), ("length", "speed", "crew", "weight")),
}

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
_ORDINALS = (
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth "
    "thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
).split()


def number_words(number: int) -> str:
    """0 to 99 in words: 42 -> "forty-two"."""
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")


def ordinal_words(number: int) -> str:
    """1 to 31 in words: 23 -> "twenty-third"."""
    if number <= 20:
        return _ORDINALS[number]
    if number == 30:
        return "thirtieth"
    return f"{_TENS[number // 10]}-{_ORDINALS[number % 10]}"


def ordinal_digits(number: int) -> str:
    """1 to 31 in digits: 23 -> "23rd"."""
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if 11 <= number <= 13 else suffix}"


def day_part(hour: int) -> str:
    """How people name the part of the day that an hour of 0 to 23 falls in."""
    if hour < 5:
        return "at night"
    if hour < 12:
        return "in the morning"
    if hour < 18:
        return "in the afternoon"
    return "in the evening"


_PAST = {5: "five", 10: "ten", 15: "quarter", 20: "twenty", 25: "twenty-five", 30: "half"}


def time_words(hour: int, minute: int) -> str:
    """A time in words, minute a multiple of 5: (21, 30) -> "half past nine in the evening"."""
    if minute == 0:
        clock = f"{number_words((hour - 1) % 12 + 1)} o'clock"
    elif minute <= 30:
        clock = f"{_PAST[minute]} past {number_words((hour - 1) % 12 + 1)}"
    else:
        clock = f"{_PAST[60 - minute]} to {number_words(hour % 12 + 1)}"
    return f"{clock} {day_part(hour)}"
