"""Sentences of the embedded corpus, drawn by key from a small grammar: every English sound in many contexts, few repetitions."""

import re

import numpy as np

from openwavlm.runtime.randomness import integers, stable_hash, words

_TEXTS = {
    "who": """
gardener teacher sailor doctor painter baker farmer neighbour captain lawyer singer shepherd carpenter driver student nurse cousin
uncle grandmother soldier pilot waiter butcher tailor judge barber fisherman librarian engineer merchant miner plumber musician
stranger visitor goalkeeper photographer treasurer beekeeper locksmith
""",
    "animal": """
horse donkey rabbit pigeon turtle beaver fox goose mouse lizard monkey otter hedgehog squirrel whale spider eagle kitten puppy parrot
zebra vulture badger crow
""",
    "thing": """
basket ladder window candle bottle letter hammer engine wagon blanket mirror pillow needle carpet lantern bucket shovel saddle
trumpet kettle cushion envelope umbrella notebook violin compass helmet parcel ribbon treasure feather jacket suitcase picture
machine cottage garage pancake orange cherry potato onion cheese sandwich pudding biscuit lemon pepper mushroom barrel rope boat
bicycle telescope chimney curtain drawer hinge oyster toy voice vase garland wheel shoe thimble feature
""",
    "place": """
river bridge kitchen harbour market forest garden station village mountain valley castle library hospital island meadow tunnel
factory church theatre beach cellar orchard museum airport courtyard lighthouse quarry stadium bakery
""",
    "adj": """
old young heavy yellow purple quiet noisy broken wooden silver golden narrow dusty clever stubborn cheerful hungry gentle empty
crooked shiny frozen rusty smooth famous lazy tiny enormous curious strange careful faithful thirsty weary jealous usual valuable
northern southern soft round fresh bitter royal joyful beige pleasant vague thorough
""",
    # Base form and past tense of verbs with an object.
    "do": """
carry:carried paint:painted find:found push:pushed watch:watched borrow:borrowed repair:repaired lose:lost hide:hid catch:caught
throw:threw measure:measured choose:chose steal:stole bury:buried lift:lifted sell:sold buy:bought clean:cleaned drop:dropped
notice:noticed follow:followed describe:described deliver:delivered collect:collected destroy:destroyed admire:admired bring:brought
forget:forgot examine:examined polish:polished mention:mentioned weigh:weighed employ:employed avoid:avoided touch:touched
surround:surrounded imagine:imagined join:joined
""",
    # The same without an object.
    "went": """
laugh:laughed whistle:whistled sleep:slept arrive:arrived stumble:stumbled wait:waited shout:shouted vanish:vanished tremble:trembled
dance:danced argue:argued listen:listened sneeze:sneezed wander:wandered hesitate:hesitated return:returned yawn:yawned swim:swam
""",
    "how": """
slowly quickly quietly happily badly gently proudly secretly eagerly rarely usually together again anyway outdoors carefully
thoughtfully nervously suddenly
""",
    "number": "two three four five six seven eight nine ten eleven twelve thirteen twenty thirty forty fifty sixty",
    "name": """
Martha Oliver Judith Harvey Zoe George Bridget Vincent Thea Hugh Ursula Wallace Yvonne Leroy Agnes Floyd
""",
    "near": "near behind under beside above across from towards inside around beyond through",
    "the": "the the the a my your his her our their this that another every",
}
_MOMENTS = (
    "yesterday,this morning,last winter,on Thursday,before breakfast,after the storm,at midnight,every spring,in the evening,long ago,"
    "on Monday,during the parade,at noon,late in July,on the third of August,by Wednesday,without delay,once upon a time"
)
# Slot of a template → its words.
WORDS = {slot: text.split() for slot, text in _TEXTS.items()} | {"when": _MOMENTS.split(",")}

TEMPLATES = (
    "{the} {adj} {who} {did} {the} {adj} {thing} {near} the {place}.",
    "{name} and {the} {who} {did} {number} {adj} {things} {when}.",
    "{when}, {the} {who} {did} {the} {thing}, but {name} {went} {how}.",
    "Did {the} {adj} {who} {do} {the} {thing} {near} the {place}?",
    "When the {animal} {went}, {name} {how} {did} {the} {adj} {thing}.",
    "{the} {who} could not {do} {the} {adj} {thing} {when}.",
    "{number} {adj} {animals} {went} {near} the {adj} {place}.",
    "{name} said that {the} {animal} {did} {the} {thing} {how}.",
    "Please {do} the {adj} {thing}, and then {do} the {things} {near} the {place}.",
    "{the} {thing} of {the} {who} was {adj}, {adj} and rather {adj}.",
    "There were {number} {things} and {number} {adj} {animals} {near} the {place}.",
    "Why should {name} {do} {the} {things}, if {the} {who} {went} {when}?",
    "{how}, {the} {animal} and {the} {adj} {who} {went} {near} the {place} {when}.",
    "{the} {adj} {place} {near} the {place} was full of {adj} {things}.",
)

_DRAWS = 32


def plural(noun: str) -> str:
    """English plural of a noun of the lists."""
    irregular = {"goose": "geese", "mouse": "mice", "fisherman": "fishermen"}
    if noun in irregular:
        return irregular[noun]
    if re.search(r"(s|x|ch|sh|o)$", noun):
        return noun + "es"
    return noun[:-1] + "ies" if re.search(r"[^aeiou]y$", noun) else noun + "s"


def sentence(seed: int, key: str) -> str:
    """Draws a sentence by the seed of the corpus and the key of the utterance."""
    raw = words(seed, "synthesis.sentence", _DRAWS, source=stable_hash(key))
    template = TEMPLATES[int(integers(raw[:1], len(TEMPLATES))[0])]
    draws = iter(raw[1:])
    text = with_articles(re.sub(r"\{(\w+)\}", lambda slot: _fill(slot.group(1), next(draws)), template))
    return text[0].upper() + text[1:]


def with_articles(text: str) -> str:
    """Replaces "a" by "an" before vowels ("a usual" stays)."""
    return re.sub(r"\ba (?=[aeio]|u[mn])", "an ", text)


def _fill(slot: str, raw: np.uint64) -> str:
    """Draws a word for a slot of a template."""
    choices = WORDS[{"animals": "animal", "things": "thing", "did": "do"}.get(slot, slot)]
    word = choices[int(integers(np.array([raw]), len(choices))[0])]
    if slot in ("animals", "things"):
        return plural(word)
    return word.partition(":")[2 if slot in ("did", "went") else 0]
