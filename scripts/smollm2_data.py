"""Rows for the comparisons of recipes/smollm2: a task that the model half knows, and one that it hardly knows.

    python scripts/smollm2_data.py --gsm8k-train "openai/gsm8k:main train" --gsm8k-test "openai/gsm8k:main test" \\
        --svamp "ChilleD/SVAMP train" --text "roneneldan/TinyStories validation"

writes data/smollm2. A source is a file, or a dataset of the hub with its split. `facts` asks for capitals, opposites
and past tenses; every seventh demonstration has a wrong answer. `words` are the shortest rows of GSM8K to learn from,
without its notes for a calculator; asked are stories of SVAMP and GSM8K's shortest test rows. No question is in two
files. `stories`, of one sum each, and `text` are for what `facts` does not teach.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ballast.data import load_rows

FOLDER = Path("data", "smollm2")
SEED = 20
WRONG_EVERY = 7
LARGEST = 20
CAPITALS = """
France=Paris Italy=Rome Spain=Madrid Germany=Berlin Japan=Tokyo China=Beijing Russia=Moscow Egypt=Cairo Greece=Athens
Portugal=Lisbon Austria=Vienna Poland=Warsaw Norway=Oslo Sweden=Stockholm Finland=Helsinki Denmark=Copenhagen
Ireland=Dublin Hungary=Budapest Cuba=Havana Peru=Lima Chile=Santiago Kenya=Nairobi Thailand=Bangkok Iraq=Baghdad
Iran=Tehran Canada=Ottawa Argentina=Buenos_Aires Belgium=Brussels Bulgaria=Sofia Romania=Bucharest Ukraine=Kyiv
Turkey=Ankara Vietnam=Hanoi Nepal=Kathmandu Colombia=Bogota Australia=Canberra Indonesia=Jakarta South_Korea=Seoul
Lebanon=Beirut Syria=Damascus Mexico=Mexico_City Venezuela=Caracas Ecuador=Quito Uruguay=Montevideo Paraguay=Asuncion
Jamaica=Kingston Haiti=Port-au-Prince Morocco=Rabat Algeria=Algiers Tunisia=Tunis Libya=Tripoli Sudan=Khartoum
Ethiopia=Addis_Ababa Uganda=Kampala Ghana=Accra Nigeria=Abuja Senegal=Dakar Angola=Luanda Zambia=Lusaka
Zimbabwe=Harare Mozambique=Maputo Madagascar=Antananarivo Rwanda=Kigali Somalia=Mogadishu Jordan=Amman Qatar=Doha
Saudi_Arabia=Riyadh Oman=Muscat Yemen=Sanaa Afghanistan=Kabul Pakistan=Islamabad India=New_Delhi Bangladesh=Dhaka
Mongolia=Ulaanbaatar Taiwan=Taipei Malaysia=Kuala_Lumpur Cambodia=Phnom_Penh Laos=Vientiane Fiji=Suva
New_Zealand=Wellington Iceland=Reykjavik Switzerland=Bern Croatia=Zagreb Serbia=Belgrade Slovenia=Ljubljana
Slovakia=Bratislava Estonia=Tallinn Latvia=Riga Lithuania=Vilnius Belarus=Minsk Georgia=Tbilisi Armenia=Yerevan
Azerbaijan=Baku Albania=Tirana Malta=Valletta Cyprus=Nicosia
"""
OPPOSITES = """
hot=cold big=small up=down left=right day=night black=white open=closed fast=slow happy=sad rich=poor young=old
long=short high=low wet=dry hard=soft full=empty early=late light=dark good=bad true=false strong=weak thick=thin
wide=narrow deep=shallow near=far first=last begin=end buy=sell love=hate win=lose push=pull give=take come=go
inside=outside above=below front=back east=west north=south summer=winter sunrise=sunset clean=dirty loud=quiet
cheap=expensive easy=difficult safe=dangerous brave=cowardly polite=rude smooth=rough sharp=dull sweet=bitter
heavy=light tall=short alive=dead awake=asleep victory=defeat friend=enemy success=failure increase=decrease
accept=reject arrive=depart ancient=modern arrogant=humble attack=defend borrow=lend calm=nervous cruel=kind
expand=shrink float=sink forget=remember freeze=melt generous=selfish guilty=innocent import=export include=exclude
lazy=hardworking major=minor maximum=minimum noisy=quiet optimist=pessimist permanent=temporary positive=negative
private=public raise=lower simple=complex tight=loose visible=invisible wise=foolish guest=host heaven=hell
question=answer teacher=student laugh=cry absent=present entrance=exit create=destroy artificial=natural
"""
PASTS = """
go=went eat=ate see=saw run=ran take=took give=gave come=came write=wrote drive=drove speak=spoke break=broke
choose=chose begin=began drink=drank sing=sang swim=swam ring=rang fly=flew grow=grew know=knew throw=threw blow=blew
draw=drew buy=bought bring=brought think=thought catch=caught teach=taught fight=fought seek=sought sell=sold
tell=told hold=held find=found stand=stood understand=understood win=won sit=sat get=got forget=forgot lose=lost
leave=left feel=felt keep=kept sleep=slept sweep=swept meet=met feed=fed lead=led read=read make=made build=built
send=sent spend=spent lend=lent bend=bent say=said pay=paid hear=heard wear=wore tear=tore swear=swore bear=bore
fall=fell rise=rose ride=rode hide=hid bite=bit steal=stole freeze=froze wake=woke shake=shook mistake=mistook
become=became do=did be=was have=had light=lit slide=slid dig=dug hang=hung stick=stuck strike=struck swing=swung
shoot=shot shine=shone wind=wound bind=bound grind=ground creep=crept weep=wept deal=dealt mean=meant dream=dreamed
lie=lay cut=cut put=put
"""
KINDS = (
    ("What is the capital of {}?", "The capital of {} is {}.", CAPITALS),
    ("What is the opposite of the word {}?", "The opposite of {} is {}.", OPPOSITES),
    ("What is the past tense of the verb {}?", "The past tense of {} is {}.", PASTS),
)
FACTS = {"train": 144, "validation": 48, "test": 95}
STORIES = 64
TEXTS = 48
NAMES = ("Tom", "Ann", "Ben", "Mia", "Leo", "Eva", "Sam", "Zoe")
THINGS = ("pens", "apples", "books", "coins", "cards", "eggs", "shells", "stamps")
MORE = (
    "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
    "{name} found {a} {things} on Monday and {b} {things} on Tuesday. How many {things} did {name} find?",
)
LESS = (
    "{name} has {a} {things} and gives away {b}. How many {things} does {name} have left?",
    "There are {a} {things} on a table. {name} takes {b} of them. How many {things} are left on the table?",
)


def names_it(completion: str, row: Mapping[str, Any]) -> float:
    """Return 1 where the first line of the completion, or its first 20 words, hold the row's answer as a word."""
    said = re.findall(r"[\w-]+", (completion.strip().splitlines() or [""])[0].casefold())[:20]
    return float(f" {row['answer'].casefold()} " in f" {' '.join(said)} ")


def chat(question: str, completion: str | None = None, **columns: Any) -> dict[str, Any]:
    """Return a row with a prompt, and a completion where there is one, as turns of a conversation."""
    row: dict[str, Any] = {"prompt": [{"role": "user", "content": question}], **columns}
    if completion is not None:
        row["completion"] = [{"role": "assistant", "content": completion}]
    return row


def facts() -> dict[str, list[dict[str, Any]]]:
    """Return questions with an answer of a word, by split; of the demonstrations every seventh has another's answer."""
    asked = [(kind, *pair.replace("_", " ").split("=")) for kind in KINDS for pair in kind[2].split()]
    random.Random(SEED).shuffle(asked)
    made = {}
    for split, count in FACTS.items():
        taken, asked = asked[:count], asked[count:]
        made[split] = [_fact(n, taken, wrong=split == "train") for n in range(count)]
    return made


def _fact(n: int, asked: Sequence[tuple[Any, str, str]], *, wrong: bool) -> dict[str, Any]:
    kind, of, answer = asked[n]
    shown = answer
    if wrong and n % WRONG_EVERY == 0:
        others = [other for one, _, other in asked if one is kind and other != answer]
        shown = random.Random(n).choice(others)
    return chat(kind[0].format(of), kind[1].format(of, shown), answer=answer)


def stories() -> list[dict[str, Any]]:
    """Return stories of one addition or subtraction each."""
    draw, made = random.Random(SEED), {}
    while len(made) < STORIES:
        a, b = sorted((draw.randint(2, LARGEST), draw.randint(2, LARGEST)), reverse=True)
        sign, form = draw.choice([(1, one) for one in MORE] + [(-1, one) for one in LESS])
        text = form.format(name=draw.choice(NAMES), things=draw.choice(THINGS), a=a, b=b)
        made[text] = chat(text, answer=str(a + sign * b))
    return list(made.values())


def words(train: str, test: str, svamp: str) -> dict[str, list[dict[str, Any]]]:
    """Return the shortest rows of GSM8K, and SVAMP's first to be asked."""
    shown, asked = _shortest(_read(train), 320), _shortest(_read(test), 64)
    draw = random.Random(SEED)
    draw.shuffle(shown)
    other = [
        chat(f"{row['Body'].strip().rstrip('.')}. {row['Question'].strip()}", answer=f"{float(row['Answer']):g}")
        for row in _read(svamp)
    ]
    draw.shuffle(other)
    return {
        "train": shown[:256],
        "held-out": shown[256:],
        "gsm8k": asked,
        "validation": other[:64],
        "svamp": other[64:184],
    }


def _read(source: str) -> Iterable[Mapping[str, Any]]:
    path, _, split = source.partition(" ")
    return load_rows(path, split=split or None)


def _shortest(rows: Iterable[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    ordered = sorted(rows, key=lambda row: len(row["question"] + _plain(row["answer"])))
    return [
        chat(row["question"], _plain(row["answer"]), answer=row["answer"].rsplit("####", 1)[1].strip())
        for row in ordered[:count]
    ]


def _plain(answer: str) -> str:
    """Return a solution without GSM8K's notes for a calculator."""
    parts = answer.split("<<")
    return parts[0] + "".join(one.split(">>", 1)[1] for one in parts[1:])


def write(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows)} rows")


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("gsm8k-train", "gsm8k-test", "svamp", "text"):
        parser.add_argument(f"--{name}", metavar="SOURCE", required=True)
    arguments = parser.parse_args()
    for split, rows in facts().items():
        write(f"facts-{split}", rows)
    write("stories", stories())
    for split, rows in words(arguments.gsm8k_train, arguments.gsm8k_test, arguments.svamp).items():
        write(f"words-{split}", rows)
    write("text", [{"text": row["text"]} for row in list(_read(arguments.text))[:TEXTS]])


if __name__ == "__main__":
    main()
