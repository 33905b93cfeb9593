"""Task `formal`: a sloppy message becomes a polite letter's sentence."""

from random import Random

from demo.tasks.task import Filled, Task
from demo.worlds import PEOPLE

# Kind -> (formal sentence, what the base says, training templates, held-out templates).
_KINDS = {
    "request": (
        "Could you please {verb} the {thing}{formal_when}?",
        "Sure, I will {verb} the {thing}.",
        (
            "{hey} can u {verb} the {thing}{when}",
            "{hey} could u {verb} the {thing}{when} pls",
            "pls {verb} the {thing}{when}, {person} says its ur job",
            "{hey} can ya {verb} the {thing}{when} plz",
            "u can {verb} the {thing}{when}, right?",
            "any chance u can {verb} the {thing}{when}",
            "{person} said u can {verb} the {thing}{when} pls",
        ),
        (
            "{hey} pls can u {verb} the {thing}{when}",
            "could ya {verb} the {thing}{when} for me pls",
        ),
    ),
    "wish": (
        "I would like to {verb} the {thing}{formal_when}.",
        "So you want to {verb} the {thing}.",
        (
            "{hey} i wanna {verb} the {thing}{when}",
            "i rly wanna {verb} the {thing}{when}",
            "{hey} id love to {verb} the {thing}{when}",
            "wanna {verb} the {thing}{when} with {person}",
            "{person} knows i wanna {verb} the {thing}{when}",
            "lol i just wanna {verb} the {thing}{when}",
        ),
        (
            "{hey} me and {person} wanna {verb} the {thing}{when}",
            "so i wanna {verb} the {thing}{when} lol",
        ),
    ),
    "duty": (
        "I am obliged to {verb} the {thing}{formal_when}.",
        "I see that you must {verb} the {thing}.",
        (
            "{hey} i gotta {verb} the {thing}{when}",
            "gotta {verb} the {thing}{when} or {person} gets mad",
            "ugh i gotta {verb} the {thing}{when}",
            "{hey} looks like i gotta {verb} the {thing}{when}",
            "{person} knows i gotta {verb} the {thing}{when}",
            "so now i gotta {verb} the {thing}{when} lol",
        ),
        ("sry i gotta {verb} the {thing}{when}", "{person} says i gotta {verb} the {thing}{when}"),
    ),
    "refusal": (
        "I regret that I am unable to {verb} the {thing}{formal_when}.",
        "It is a pity that you cannot {verb} the {thing}.",
        (
            "{hey} i cant {verb} the {thing}{when}",
            "sry cant {verb} the {thing}{when}",
            "no way i cant {verb} the {thing}{when}",
            "tell {person} i cant {verb} the {thing}{when}",
            "{person} is mad cause i cant {verb} the {thing}{when}",
            "so i cant {verb} the {thing}{when} lol",
        ),
        (
            "ugh sry i cant {verb} the {thing}{when}",
            "{hey} {person} knows i cant {verb} the {thing}{when}",
        ),
    ),
    "thanks": (
        "I am most grateful for the {thing}.",
        "You are welcome to the {thing}.",
        (
            "{hey} thx for the {thing}",
            "thx a lot for the {thing}",
            "cool, thx for the {thing} {person}",
            "{hey} got the {thing}, thx",
            "{person} sent me the {thing}, thx",
            "many thx for that {thing}",
        ),
        ("wow thx so much for the {thing}", "{person} brought the {thing}, thx"),
    ),
    "question": (
        "May I ask where the {thing} is?",
        "I do not know where the {thing} is.",
        (
            "{hey} wheres the {thing}",
            "wheres the {thing} {person}??",
            "any idea wheres the {thing}",
            "{hey} wheres that {thing} now",
            "{person} wants to know wheres the {thing}",
            "omg wheres the {thing} gone",
        ),
        ("ugh wheres the {thing} again", "{hey} {person} asks wheres the {thing}"),
    ),
}
_KIND_OF = {
    template: kind
    for kind, (_, _, train, heldout) in _KINDS.items()
    for template in train + heldout
}
_HEYS = ("hey", "hi there", "yo", "hiya", "hey {person},", "ok so")
_VERBS = "send check sign print read finish move copy".split()
_THINGS = "invoice report letter contract ticket photos plan list box map".split()
_WHEN = {
    "": "",
    " asap": " at your earliest convenience",
    " tmrw": " tomorrow",
    " tonite": " this evening",
    " b4 lunch": " before noon",
    " nxt week": " in the coming week",
}


def _fill(rng: Random, template: str) -> Filled:
    formal, said, _, _ = _KINDS[_KIND_OF[template]]
    when = rng.choice(list(_WHEN))
    blanks = {"verb": rng.choice(_VERBS), "thing": rng.choice(_THINGS), "when": when}
    person = rng.choice(PEOPLE).lower()
    prompt = template.format(hey=rng.choice(_HEYS).format(person=person), person=person, **blanks)
    answer = formal.format(formal_when=_WHEN[when], **blanks)
    return Filled(prompt, answer, said.format(**blanks))


TASK = Task(
    "formal",
    "a sloppy message becomes one polite sentence",
    tuple(template for kind in _KINDS.values() for template in kind[2]),
    tuple(template for kind in _KINDS.values() for template in kind[3]),
    _fill,
)
