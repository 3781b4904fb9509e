"""Probes: inputs made to mislead a router, and the template families they are made of.

`rewritten` puts a row's content into another task's surface format; `with_keywords` adds words
typical of another task. Both come in two families, ``train`` (an augmented router may learn from
it) and ``held_out`` (other words and other shapes; nothing is ever fitted on it). The families
were written before the routers that are tested on them were tuned.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from . import SkillStackError
from .tasks import TaskData

FAMILIES = ("train", "held_out")


def dress(text: str, text_pair: str, template: str) -> str:
    """One row's content in a template.

    A template with ``{text_pair}`` takes a pair; a single text is cut in two halves at the
    sentence end (else the space) nearest its middle. A template without takes a pair's two texts
    one after the other.
    """
    if "{text_pair}" not in template:
        return template.replace("{text}", f"{text} {text_pair}".strip())
    if not text_pair:
        text, text_pair = halves(text)
    # Not str.format twice: a text may hold braces of its own.
    before, _, rest = template.partition("{text}")
    if "{text_pair}" in before:
        start, _, between = before.partition("{text_pair}")
        return f"{start}{text_pair}{between}{text}{rest}"
    return f"{before}{text}" + rest.replace("{text_pair}", text_pair)


def halves(text: str) -> tuple[str, str]:
    """A text cut at the sentence end, else the space, nearest its middle; one word stays whole."""
    cuts = [found.end() for found in re.finditer(r"[.!?]\s+", text)]
    cuts = cuts or [found.end() for found in re.finditer(r"\s+", text)]
    if not cuts:
        return text, ""
    cut = min(cuts, key=lambda end: abs(end - len(text) / 2))
    return text[:cut].strip(), text[cut:].strip()


def formats(data: TaskData, family: str) -> tuple[str, ...]:
    """A task's templates of a family; ``train`` begins with the task's own, if it has one."""
    templates = _of(FORMATS, family).get(data.task.name)
    if templates is None:
        raise SkillStackError(f"no format templates for task {data.task.name!r}")
    own = data.task.template
    return (own, *templates) if family == "train" and own != "{text}" else templates


def rewritten(
    stream: Sequence[TaskData], split: str, family: str, seed: int, one_format: bool = False
) -> pd.DataFrame:
    """Each row of a split in the surface format of another task of the stream.

    Columns: text, task (where the content comes from), wears (whose format). Which format, and
    which of its templates, is decided by the hash of seed and text, so every router sees the same
    rewritten texts. one_format: always the first template, as in `formatted`.
    """
    return _dressed(stream, split, family, seed, one_format, others=True)


def formatted(stream: Sequence[TaskData], split: str, family: str, seed: int) -> pd.DataFrame:
    """Each row of a split in the first template of its own task: every task wears a format."""
    return _dressed(stream, split, family, seed, True, others=False)


def _dressed(stream, split, family, seed, one_format, others) -> pd.DataFrame:
    rows = []
    for data in stream:
        targets = [one for one in stream if one is not data] if others else [data]
        if not targets:
            raise SkillStackError("a text can wear another task's format only with two tasks")
        part = getattr(data, split)
        for text, pair in zip(part["text"], part["text_pair"], strict=True):
            draw = _draw(seed, "format", data.name, text, pair)
            target = targets[draw.integers(len(targets))]
            templates = formats(target, family)
            template = templates[0 if one_format else draw.integers(len(templates))]
            rows.append((dress(text, pair, template), data.name, target.name))
    return pd.DataFrame(rows, columns=["text", "task", "wears"])


def with_keywords(
    stream: Sequence[TaskData], split: str, family: str, seed: int, n: int = 5
) -> pd.DataFrame:
    """Each row of a split, rendered as usual, with n keywords of another task of the stream.

    Columns: text, task, trap (whose keywords). The ``held_out`` family has other keywords and
    other templates than ``train``.
    """
    words, templates = _of(KEYWORDS, family), _of(KEYWORD_TEMPLATES, family)
    if len(stream) < 2:
        raise SkillStackError("keywords of another task need a stream of two tasks")
    rows = []
    for data in stream:
        others = [one.name for one in stream if one is not data]
        for text in data.texts(split):
            draw = _draw(seed, "keywords", data.name, text)
            trap = others[draw.integers(len(others))]
            if trap not in words:
                raise SkillStackError(f"no keywords for task {trap!r}")
            chosen = ", ".join(draw.choice(words[trap].split(", "), n, replace=False))
            before, _, behind = templates[draw.integers(len(templates))].partition("{text}")
            before, behind = (part.replace("{keywords}", chosen) for part in (before, behind))
            rows.append((f"{before}{text}{behind}", data.name, trap))
    return pd.DataFrame(rows, columns=["text", "task", "trap"])


def _of(table: dict, family: str):
    if family not in table:
        raise SkillStackError(f"unknown family {family!r} (known: {', '.join(FAMILIES)})")
    return table[family]


def _draw(*key) -> np.random.Generator:
    joined = "\x1f".join(map(str, key)).encode("utf-8", "replace")
    return np.random.default_rng(list(hashlib.sha256(joined).digest()))


# ---------------------------------------------------------------------- the template families

FORMATS = {
    "train": {
        "imdb": (
            "Movie review: {text}\nIs the sentiment positive or negative?",
            "IMDb review: {text}\nSentiment:",
            "Movie review text: {text}\nLabel (positive/negative):",
        ),
        "yelp": (
            "Yelp review: {text}\nSentiment:",
            "Restaurant review: {text}\nIs the sentiment positive or negative?",
            "Business review: {text}\nLabel (positive/negative):",
        ),
        "rotten_tomatoes": (
            "Film review snippet: {text}\nSentiment:",
            "Rotten Tomatoes review: {text}\nIs this review positive or negative?",
            "Critic sentence: {text}\nPositive or negative:",
        ),
        "sst2": (
            "Phrase: {text}\nSentiment (positive/negative):",
            "SST-2 sentence: {text}\nLabel:",
            "Film review phrase: {text}\nIs the phrase positive or negative?",
        ),
        "amazon": (
            "Product review: {text}\nSentiment:",
            "Amazon review: {text}\nIs the sentiment positive or negative?",
            "Amazon product review text: {text}\nLabel (positive/negative):",
        ),
        "qnli": (
            "Question: {text}\nSentence: {text_pair}\nDoes the sentence answer the question?",
            "Question: {text}\nContext sentence: {text_pair}\nLabel (entailment/not entailment):",
            "QNLI question: {text}\nWikipedia sentence: {text_pair}\nAnswerable (yes/no):",
        ),
        "mrpc": (
            "Sentence 1: {text}\nSentence 2: {text_pair}\nAre these sentences paraphrases?",
            "First sentence: {text}\nSecond sentence: {text_pair}\nParaphrase (yes/no):",
            "News sentence A: {text}\nNews sentence B: {text_pair}\nEquivalent:",
        ),
        "qqp": (
            "Question 1: {text}\nQuestion 2: {text_pair}\nAre these questions duplicates?",
            "First question: {text}\nSecond question: {text_pair}\nDuplicate (yes/no):",
            "Quora question A: {text}\nQuora question B: {text_pair}\nSame meaning:",
        ),
        "boolq": (
            "Question: {text}\nPassage: {text_pair}\nAnswer (yes/no):",
            "Yes/no question: {text}\nWikipedia passage: {text_pair}\nTrue or false:",
            "BoolQ question: {text}\nPassage text: {text_pair}\nIs the answer yes or no?",
        ),
        "agnews": (
            "News story: {text}\nTopic (World, Sports, Business, Sci/Tech):",
            "AG News text: {text}\nCategory:",
            "News article: {text}\nWhich category does this article belong to?",
        ),
        "yahoo": (
            "Question and answer: {text}\nTopic:",
            "Yahoo Answers post: {text}\nCategory:",
            "User question with best answer: {text}\nWhich topic is this question about?",
        ),
        "dbpedia": (
            "Entity description: {text}\nCategory:",
            "DBpedia abstract: {text}\nClass:",
            "Encyclopedia entry: {text}\nWhich type of entity is this?",
        ),
        "yelp5": (
            "Yelp review: {text}\nStars (1-5):",
            "Business review: {text}\nRating from 1 to 5 stars:",
            "Restaurant review text: {text}\nHow many stars is the rating?",
        ),
        "amazon5": (
            "Amazon review: {text}\nStars (1-5):",
            "Product review: {text}\nRating from 1 to 5 stars:",
            "Amazon product review text: {text}\nHow many stars is the rating?",
        ),
        "movies": (
            "Movie review sentence: {text}\nSentiment:",
            "Sentence from a film review: {text}\nLabel (positive/negative):",
            "Movie sentence: {text}\nIs the sentence positive or negative?",
        ),
        "products": (
            "Product review sentence: {text}\nSentiment:",
            "Sentence from a product review: {text}\nLabel (positive/negative):",
            "Product sentence: {text}\nIs the sentence positive or negative?",
        ),
        "editorials": (
            "Editorial sentence: {text}\nSentiment:",
            "Newspaper opinion sentence: {text}\nLabel (positive/negative):",
            "Opinion column: {text}\nIs the sentence positive or negative?",
        ),
        "tweets": (
            "Tweet: {text}\nSentiment:",
            "Twitter post: {text}\nLabel (positive/negative):",
            "Tweet text: {text}\nIs the tweet positive or negative?",
        ),
        "bbc": (
            "BBC article: {text}\nCategory:",
            "BBC News text: {text}\nTopic (business, entertainment, politics, sport, tech):",
            "News article from the BBC: {text}\nWhich topic does the article cover?",
        ),
        "headline": (
            "Headline: {text}\nArticle: {text_pair}\nDoes the headline match the article?",
            "Headline: {text}\nBody: {text_pair}\nStance:",
            "News headline: {text}\nArticle body: {text_pair}\nRelated or unrelated:",
        ),
        "drug_rating": (
            "Drug review: {text}\nRating:",
            "Medication review: {text}\nRating from 1 to 10:",
            "Patient review of a drug: {text}\nIs the rating high or low?",
        ),
        "drug_condition": (
            "Drug review: {text}\nCondition:",
            "Medication review text: {text}\nWhich condition is the drug for?",
            "Patient drug review: {text}\nCondition treated:",
        ),
    },
    "held_out": {
        "imdb": (
            (
                "Someone who watched this picture at home wrote the long comment below. Tell me "
                "whether they would urge friends to see it or to stay away.\n\n{text}"
            ),
            "<cinema_critique>\n{text}\n</cinema_critique>",
            "## What a viewer thought after the credits rolled\n\n{text}\n\n**Recommend it?**",
            "{text}\n\nThumbs up or thumbs down for this flick, would you say?",
        ),
        "yelp": (
            (
                "Hi team,\n\na guest left us this note about our place:\n\n{text}\n\nHappy visitor "
                "or not?\n\nThanks,\nthe manager"
            ),
            "<guest_feedback>{text}</guest_feedback>",
            "Host: How were the meal and the staff?\nGuest: {text}\nHost: So would you come back?",
            "We went there last weekend, and in short: {text} Worth a trip, then?",
        ),
        "rotten_tomatoes": (
            'As a columnist at the premiere put it, "{text}" - fresh or splat?',
            "<blurb>{text}</blurb>\n<tomatometer>fresh | splat</tomatometer>",
            "> {text}\n\nQuoted on the poster or buried by the studio?",
            (
                "Decide if the following one-liner, lifted from a press roundup of new releases, "
                "would count toward a fresh score.\n{text}"
            ),
        ),
        "sst2": (
            "{text} ... praise or pan?",
            "<fragment>{text}</fragment>",
            (
                "A few words clipped from someone's take on the screen: '{text}'. Do they sound "
                "warm or cold?"
            ),
            "Human: Does this bit sound like praise to you?\nHuman: {text}\nBot:",
        ),
        "amazon": (
            (
                "Dear seller, I ordered this item and here is what I think: {text} Kind regards, a "
                "buyer"
            ),
            "<purchase>\n<feedback>{text}</feedback>\n</purchase>",
            "### Verified buyer says\n\n{text}\n\n### Would they order again?",
            (
                "{text}\n\nGoing by the comment above, was the shopper content with what arrived "
                "in the parcel?"
            ),
        ),
        "qnli": (
            (
                'Somebody wonders "{text}" and stumbles upon this line in an online reference '
                'work: "{text_pair}" Is their curiosity settled by it?'
            ),
            "<query>{text}</query>\n<candidate>{text_pair}</candidate>",
            (
                "Student: {text}\nTutor: It says here that {text_pair}\nStudent: Is that what I "
                "wanted to know?"
            ),
            "## Asked\n\n{text}\n\n## Retrieved line\n\n{text_pair}\n\n## Resolved?",
        ),
        "mrpc": (
            (
                "One agency reported that {text} Another wire carried this instead: {text_pair} Do "
                "both reports say the same thing?"
            ),
            "<pair>\n<left>{text}</left>\n<right>{text_pair}</right>\n</pair>",
            "- {text}\n- {text_pair}\n\nMerge as restatements, or keep both?",
            (
                "Compare the two press excerpts that follow and decide if they convey identical "
                "information in other words.\n\n(i) {text}\n(ii) {text_pair}"
            ),
        ),
        "qqp": (
            (
                "Moderator note: a member just asked '{text}' although '{text_pair}' is already on "
                "the site. Should we merge the threads?"
            ),
            "<thread>{text}</thread><thread>{text_pair}</thread>",
            "{text}\nvs.\n{text_pair}\n\nWould one reply satisfy both people?",
            "Ann: {text}\nBen: {text_pair}\nCara: Aren't you two asking an identical thing?",
        ),
        "boolq": (
            "Please check this for me using only the excerpt underneath - {text}\n\n{text_pair}",
            "<ask>{text}</ask>\n<evidence>{text_pair}</evidence>\n<verdict/>",
            "Kid: {text}\nParent: Let me look it up. {text_pair}\nKid: So, yep or nope?",
            "**{text}**\n\n{text_pair}\n\n*Confirmed or refuted?*",
        ),
        "agnews": (
            (
                "Which desk should run the following dispatch: foreign affairs, athletics, the "
                "markets, or gadgets and labs? {text}"
            ),
            "<wire>\n{text}\n</wire>",
            (
                "Subject: for tomorrow's edition\n\nColleagues, this just came in from the "
                "agency:\n\n{text}\n\nWhere shall I file it?"
            ),
            "{text} (via newsfeed, section unknown)",
        ),
        "yahoo": (
            (
                "On a community forum somebody wanted to know something and got a reply. The whole "
                "exchange reads as follows.\n\n{text}\n\nUnder what board was it filed?"
            ),
            "<forum_exchange>{text}</forum_exchange>",
            "Asker and helper, verbatim:\n\n> {text}\n\nPick a board.",
            (
                "Please help me move this thread to the right section (health, family, money, "
                "school, computers...): {text}"
            ),
        ),
        "dbpedia": (
            (
                "From an online reference work: {text} What kind of thing is being described - a "
                "firm, a village, a plant, an album, someone's life?"
            ),
            "<stub>{text}</stub>\n<kind/>",
            "# Infobox missing\n\n{text}\n\n_Please fill in what sort of subject we have here._",
            "Visitor: Who or what is it?\nLibrarian: {text}",
        ),
        "yelp5": (
            "Out of five, what score did this patron give the venue? {text}",
            "<visit>\n<remarks>{text}</remarks>\n<score outof='5'/>\n</visit>",
            "### Patron remarks\n\n{text}\n\n### Score out of five",
            (
                "Hello,\nhere is what we told our friends about the spot: {text}\nGuess the points "
                "we gave, anywhere between one and five.\nCheers"
            ),
        ),
        "amazon5": (
            (
                "A shopper typed this after the delivery; predict the grade, one being awful and "
                "five being perfect.\n\n{text}"
            ),
            "<order_comment max='5'>{text}</order_comment>",
            "Support: How would you grade your order, one through five?\nShopper: {text}",
            "{text}\n\n... and so I gave the item [ ] out of five.",
        ),
        "movies": (
            (
                'I read this line in somebody\'s write-up of a picture last night, "{text}", and '
                "I can't tell if they liked it."
            ),
            "<line source='cinema write-up'>{text}</line>",
            "{text} | liked the picture? y/n",
            "**Excerpt, cinema blog**\n\n{text}\n\nApproving or disapproving?",
        ),
        "products": (
            (
                "In a shop forum a customer remarks that {text} Are they pleased with the thing "
                "they bought?"
            ),
            "<customer_remark>{text}</customer_remark>",
            "Q. What did the customer say of the gadget?\nA. {text}",
            "* {text}\n\nPro or con, for the comparison table?",
        ),
        "editorials": (
            "The editors of a daily paper argue as follows: {text} Do they approve or object?",
            "<op_ed>{text}</op_ed>",
            (
                'To the editor:\n\nLast Sunday your paper claimed, "{text}"\n\nI would like to '
                "know whether that was meant as support or as blame."
            ),
            "#### Leader page, one line\n\n{text}\n\nIn favour / against",
        ),
        "tweets": (
            "just saw this on my timeline lol: {text} happy or mad??",
            "<status user='anon'>{text}</status>",
            "RT @someone {text}",
            (
                "Gauge the mood of the short social media message that follows, whether cheerful "
                "or grumpy, ignoring handles and links.\n\n{text}"
            ),
        ),
        "bbc": (
            "Good evening. Here is our report. {text} And now back to the studio.",
            "<broadcast_report>\n{text}\n</broadcast_report>",
            "## On the UK broadcaster's website\n\n{text}\n\n*Filed under:*",
            (
                "The web editor must place this piece beneath one of the tabs for companies, "
                "showbiz, Westminster, football and the like, or gadgets. Where would you put "
                "it?\n\n{text}"
            ),
        ),
        "headline": (
            (
                'Would you run the piece below under the banner "{text}", or does the banner '
                "promise something else?\n\n{text_pair}"
            ),
            "<h1>{text}</h1>\n<p>{text_pair}</p>",
            (
                "# {text}\n\n{text_pair}\n\n---\nClickbait check: agrees, disputes, merely "
                "mentions, or off the mark"
            ),
            (
                "Sub-editor: I'd call it '{text}'\nReporter: But what I wrote was this. "
                "{text_pair}\nSub-editor: Close enough?"
            ),
        ),
        "drug_rating": (
            (
                "I have been taking this medicine for a while and would like to share how it went. "
                "{text} Guess the score I gave it out of ten."
            ),
            "<treatment_experience score='?'>{text}</treatment_experience>",
            "Pharmacist: How satisfied are you with the pills, one up to ten?\nMe: {text}",
            "{text}\n\nOverall, did the treatment help this person or disappoint them?",
        ),
        "drug_condition": (
            (
                "Read what this person says about their prescription and infer the illness or "
                "complaint it was meant to relieve: {text}"
            ),
            "<prescription>\n<reason>unknown</reason>\n<story>{text}</story>\n</prescription>",
            (
                "Doctor: What are you taking, and how is it going?\nMe: {text}\nDoctor: And the "
                "diagnosis was?"
            ),
            "### My story with this medicine\n\n{text}\n\n### Diagnosed with",
        ),
    },
}

KEYWORDS = {  # comma-separated, twelve a task
    "train": {
        "imdb": (
            "movie, film, actor, director, plot, scenes, screenplay, characters, ending, watched "
            "it, horror flick, acting"
        ),
        "yelp": (
            "restaurant, waiter, food, menu, server, delicious, service, appetizer, reservation, "
            "tasty, bartender, brunch"
        ),
        "rotten_tomatoes": (
            "heartfelt, comedy, drama, thriller, filmmaking, screen, performances, wit, "
            "cinematic, audience, romantic comedy, documentary"
        ),
        "sst2": (
            "charming, funny, dull, clever, moving, tedious, engaging, lifeless, touching, "
            "uneven, gorgeous, silly"
        ),
        "amazon": (
            "product, bought this, ordered, returned it, battery, shipping, price, purchase, "
            "works great, waste of money, arrived, quality"
        ),
        "qnli": (
            "what year, who was, how many, according to, in which, located in, population, "
            "century, when did, university, empire, founded"
        ),
        "mrpc": (
            "said, percent, shares, officials, spokesman, Tuesday, billion, investigators, "
            "company, quarter, analysts, court"
        ),
        "qqp": (
            "best way to, how do i, why do people, what is the difference, should i, india, "
            "quora, how can i, lose weight, is it possible, what are some, learn programming"
        ),
        "boolq": (
            "is it legal, does the, is there a, can you, are there, has there ever been, was it, "
            "do all, is the same as, season, law, united states"
        ),
        "agnews": (
            "iraq, stocks, oil prices, microsoft, olympics, prime minister, quarterback, "
            "software, election, AP, troops, internet"
        ),
        "yahoo": (
            "anyone know, please help, my boyfriend, how to fix, thanks in advance, homework, "
            "what do you think, girlfriend, best answer, religion, myspace, yahoo"
        ),
        "dbpedia": (
            "is a village, was born, species of, genus, album by, novel, footballer, "
            "municipality, headquartered, district, released in, family"
        ),
        "yelp5": (
            "five stars, one star, ambiance, staff, pizza, friendly staff, overpriced, coffee, "
            "cozy, tacos, wait time, chicken wings"
        ),
        "amazon5": (
            "highly recommend, disappointed, paperback, author, the book, sturdy, cheaply made, "
            "plastic, kindle, easy to use, fits perfectly, cd"
        ),
        "movies": (
            "box office, protagonist, blockbuster, on-screen, scene, leading man, dialogue, star "
            "power, villain, oscar, remake, film buff"
        ),
        "products": (
            "camera, battery life, zoom, mp3 player, lcd, buttons, phone, picture quality, "
            "keyboard, headphones, usb, printer"
        ),
        "editorials": (
            "government, policy, congress, reform, democracy, nation, voters, the president, "
            "taxpayers, public interest, legislation, must act"
        ),
        "tweets": (
            "lol, omg, rt, hashtag, follow me, tonight, wish i, haha, twitter, so excited, ugh, "
            "miss you"
        ),
        "bbc": (
            "bbc, labour, tony blair, chancellor, england, premiership, six nations, broadband, "
            "mr brown, £5bn, uk firms, tory"
        ),
        "headline": (
            "breaking, report claims, rumor, hoax, sources say, exclusive, confirmed, "
            "unverified, isis, viral video, debunked, reportedly"
        ),
        "drug_rating": (
            "side effects, dosage, mg, pill, medication, doctor prescribed, works for me, "
            "nausea, headaches, weight gain, took it, miracle drug"
        ),
        "drug_condition": (
            "depression, birth control, anxiety, diabetes, migraine, acne, adhd, high blood "
            "pressure, chronic pain, bipolar, panic attacks, constipation"
        ),
    },
    "held_out": {
        "imdb": (
            "cinematography, sequel, cast, storyline, hollywood, soundtrack, special effects, "
            "rented the dvd, script, actress, plot holes, b-movie"
        ),
        "yelp": (
            "happy hour, parking lot, waitress, entree, burger, salad, tip, hostess, patio, "
            "portions, sushi, dessert"
        ),
        "rotten_tomatoes": (
            "biopic, schlocky, coming-of-age, ensemble piece, melodrama, satire, big-screen, "
            "poignant, art-house, predictable, genre, auteur"
        ),
        "sst2": (
            "visually stunning, humor, warmth, bland, sentimental, emotionally, pretentious, "
            "compelling, contrived, witty, delightful, mess"
        ),
        "amazon": (
            "refund, packaging, seller, warranty, broke after, replacement, customer support, "
            "shopping, model, money back, item, gift"
        ),
        "qnli": (
            "what is the name, which city, river, council, what type, how long, dynasty, "
            "constitution, treaty, what percentage, era, estimated"
        ),
        "mrpc": (
            "Nasdaq, chief executive, Thursday, prosecutors, stock exchange, revenue, statement, "
            "regulators, lawsuit, net income, year earlier, Reuters"
        ),
        "qqp": (
            "how does one, where can i find, what would happen if, what are the pros and cons, "
            "engineering colleges, improve my english, make money online, which is better, how "
            "much does it cost, is it worth, can you explain, get rid of"
        ),
        "boolq": (
            "federal, amendment, based on a true story, allowed to, can a person, is it true, "
            "citizen, world cup, belong to, part of, fictional, episode"
        ),
        "agnews": (
            "wall street, baghdad, red sox, google, palestinian, nasa, linux, championship, "
            "afghanistan, profit, yankees, hurricane"
        ),
        "yahoo": (
            "just wondering, any ideas, windows xp, my teacher, hope this helps, dating, god, "
            "good luck, math problem, my friend, credit card, does anybody"
        ),
        "dbpedia": (
            "flowering plant, moth, high school, studio album, politician, lake, mountain, naval "
            "ship, railway station, publisher, populated place, historic house"
        ),
        "yelp5": (
            "four stars, two stars, nail salon, steak, vegas, rude, buffet, will be back, "
            "manager, local spot, front desk, seated"
        ),
        "amazon5": (
            "worth every penny, chapters, would not buy again, wrong size, instructions, "
            "defective, well written, return policy, durable, toy, page-turner, vacuum"
        ),
        "movies": (
            "premiere, cameo, animation, moviegoers, popcorn, running time, supporting role, "
            "franchise, theater, twist, screenwriter, action sequences"
        ),
        "products": (
            "memory card, viewfinder, megapixels, remote, charger, firmware, touchscreen, "
            "speakers, interface, laptop, ipod, lightweight"
        ),
        "editorials": (
            "senate, administration, budget deficit, civil liberties, foreign policy, lawmakers, "
            "accountability, justice, citizens deserve, campaign finance, ought to, supreme "
            "court"
        ),
        "tweets": (
            "smh, #fail, goodnight, gonna, bored, xoxo, lmao, yay, can't wait, followers, mood, "
            "bestie"
        ),
        "bbc": (
            "chelsea, liberal democrats, michael howard, bafta, arsenal, rugby, gordon brown, "
            "downing street, euros, london, mobile phones, brit awards"
        ),
        "headline": (
            "fake story, according to reports, eyewitness, shocking, update, leaked, photo "
            "shows, apple watch, allegedly, local media, tabloid, denies"
        ),
        "drug_rating": (
            "tablets, dizziness, insomnia, dry mouth, after two weeks, stopped taking, life "
            "saver, drowsy, generic version, first dose, withdrawal, relief"
        ),
        "drug_condition": (
            "allergies, asthma, arthritis, fibromyalgia, psoriasis, acid reflux, seizures, "
            "obesity, yeast infection, thyroid, schizophrenia, opioid dependence"
        ),
    },
}

KEYWORD_TEMPLATES = {
    "train": (
        "{text} Keywords: {keywords}",
        "{text}\nTags: {keywords}",
        "{text} [{keywords}]",
        "Terms: {keywords}\n{text}",
    ),
    "held_out": (
        "{text}\n\n#{keywords} #mustread",
        "{text} (mostly on account of {keywords} and so on)",
        "{text}\n\n---\nSee also → {keywords}",
        "{text} By the way, I kept thinking of {keywords} while writing all this.",
        "People who mention {keywords} tend to end up here.\n\n{text}",
    ),
}
