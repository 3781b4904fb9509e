"""`ScaffoldBlindRouter`: looks past formats and inserted text, and what it needs for that."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from ..errors import checked_texts
from ..files import TEXT, check_fields, list_of, number
from .base import check_arrays, check_fitted, depths, needed, places, unit
from .hybrid import HybridEmbedRouter

DETECTOR_TEXTS = 1500  # of the routing texts, for a regression on some twenty numbers
LEAST_KEPT = 0.4  # share of a text's words that stays, whatever looks inserted


class ScaffoldBlindRouter(HybridEmbedRouter):
    """`HybridEmbedRouter` made to look past a text's scaffold.

    A scaffold is what surrounds the content: a task's format, an instruction, a list of keywords.
    Three means, all learned from the routing texts alone, never from a rewritten text:

    1. *Learned formats.* Word sequences that begin or end a line in at least `nearly_every` of
       some frame's texts (``Question 1:``) are cut from the ends of every line.
    2. *Inserted pieces.* A text is split into lines, sentences and brackets; each piece is
       compared with the rest of its text (cosines of the pooled hidden states at every depth,
       agreement of a linear classifier's opinions, lengths, position). A logistic regression that
       has seen 2 to 10 words of another frame's text put before or behind says whether the piece
       was inserted. Pieces above the probability `tolerance` are dropped, the most probable first,
       as long as 40 % of the words stay.
    3. *Noise.* The SVM learns from each text twice, once with such words at one end.

    A text's score is the mean over its readings: without the format, and without inserted pieces.
    The format still counts, but no more than `format_trust`, which is added to the frames whose
    formats are exactly the ones found: it decides between frames that the content leaves open.

    >>> from skillstack_helpers import load_backbone
    >>> texts = ["a dull film", "a fine film", "the bank cut rates", "its shares fell"]
    >>> router = ScaffoldBlindRouter(load_backbone("minilm", device="cpu"), max_length=32)
    >>> router = router.fit(texts, ["imdb", "imdb", "agnews", "agnews"])
    >>> router.decision_function(["Question: what a film!"]).shape
    (1, 2)
    """

    def __init__(
        self,
        backbone=None,
        scale: float = 1.0,
        C: float = 1.0,
        nearly_every: float = 0.9,
        tolerance: float = 0.5,
        format_trust: float = 0.4,
        seed: int = 0,
        max_length: int = 160,
    ):
        super().__init__(backbone=backbone, scale=scale, C=C, max_length=max_length)
        self.nearly_every = nearly_every
        self.tolerance = tolerance
        self.format_trust = format_trust
        self.seed = seed

    def _fit(self, texts, names):
        rng = np.random.default_rng(self.seed)
        self.formats_ = learn_formats(texts, names, self.nearly_every)
        texts = self._without_formats(texts)[0]
        noisy = []
        if len(self.frames_) > 1:
            self._fit_detector(texts, names, rng)
            for i, text in enumerate(texts):
                ends = [" ".join(_words_of_another(i, texts, names, rng)), text]
                noisy.append("\n".join(ends if rng.random() < 0.5 else ends[::-1]))
        source = np.arange(len(texts))
        source = np.concatenate([source, source[: len(noisy)]])
        self._learn([*texts, *noisy], [*names, *names[: len(noisy)]], source)

    def _scores(self, texts):
        cut, found = self._without_formats(texts)
        scores = super()._scores(cut)
        content = self._without_inserted(cut)
        changed = np.array([a != b for a, b in zip(cut, content, strict=True)])
        if changed.any():
            again = super()._scores([content[i] for i in np.flatnonzero(changed)])
            scores[changed] = (scores[changed] + again) / 2
        own = [
            {(side, cut) for side, cuts in self.formats_[frame].items() for cut in cuts}
            for frame in self.frames_
        ]
        return scores + self.format_trust * np.array([[one == f for one in own] for f in found])

    def content(self, texts: Sequence[str]) -> list[str]:
        """The texts without formats and inserted pieces."""
        check_fitted(self)
        return self._without_inserted(self._without_formats(checked_texts(texts))[0])

    def _without_formats(self, texts: list[str]) -> tuple[list[str], list[set]]:
        patterns = format_patterns(self.formats_)
        both = [cut_formats(text, patterns) for text in texts]
        return [cut for cut, _ in both], [found for _, found in both]

    def _without_inserted(self, texts: list[str]) -> list[str]:
        if len(self.frames_) == 1 or not texts:
            return texts
        pieces = [split_pieces(text) for text in texts]
        features, where = self._compare(pieces)
        if not len(where):
            return texts
        inserted = expit(features @ self.detector_coef_ + self.detector_intercept_)
        kept = [np.ones(len(row), dtype=bool) for row in pieces]
        words = [np.array([len(piece.split()) for piece in row]) for row in pieces]
        for k in np.argsort(-inserted, kind="stable"):
            i, j = where[k]
            if inserted[k] <= self.tolerance:
                break
            if words[i][kept[i]].sum() - words[i][j] >= LEAST_KEPT * words[i].sum():
                kept[i][j] = False
        return [
            text if keep.all() else " ".join(p for p, k in zip(row, keep, strict=True) if k)
            for text, row, keep in zip(texts, pieces, kept, strict=True)
        ]

    def _fit_detector(self, texts: list[str], names: list, rng) -> None:
        if len(texts) > DETECTOR_TEXTS:
            some = np.argsort(places(names), kind="stable")[:DETECTOR_TEXTS]  # of each frame
            texts, names = [texts[i] for i in some], [names[i] for i in some]
        pieces = [split_pieces(text) for text in texts]
        states, sizes = self._embed_pieces(pieces)
        whole = [(states[r] * sizes[r, None, None]).sum(0) / sizes[r].sum() for r in _rows(pieces)]
        whole = depths(np.stack(whole))
        self.piece_mean_, self.piece_spread_ = whole.mean(0), whole.std(0) + 1e-6
        opinion = RidgeClassifier(alpha=0.3).fit(self._standard(whole), names)
        self.opinion_coef_, self.opinion_intercept_ = self._weights(opinion)
        mixed, is_inserted = [*pieces], [[False] * len(row) for row in pieces]
        for i, row in enumerate(pieces):
            for behind in (False, True):
                others = _words_of_another(i, texts, names, rng)
                mixed.append([*row, *others] if behind else [*others, *row])
                target = [True] * len(others) + [False] * len(row)
                is_inserted.append(target[::-1] if behind else target)
        features, where = self._compare(mixed)
        is_inserted = np.array([is_inserted[i][j] for i, j in where])
        mean, spread = features.mean(0), features.std(0) + 1e-6
        fitted = LogisticRegression(max_iter=500, class_weight="balanced")
        fitted.fit((features - mean) / spread, is_inserted)
        self.detector_coef_ = fitted.coef_[0] / spread
        self.detector_intercept_ = fitted.intercept_[0] - mean @ self.detector_coef_

    def _embed_pieces(self, pieces: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Hidden states (pieces, layers, hidden) and tokens (pieces,) of all pieces in a row."""
        flat = [piece for row in pieces for piece in row]
        backbone = needed(self.backbone, "backbone")
        length = backbone.fits(self.max_length)  # where `embed` cuts
        sizes = np.array([len(ids) for ids in backbone.encode(flat, length)], dtype=float)
        return self._embed(flat), sizes

    def _standard(self, states: np.ndarray) -> np.ndarray:
        return (states - self.piece_mean_) / self.piece_spread_ / states.shape[1] ** 0.5

    def _opinions(self, states: np.ndarray) -> np.ndarray:
        scores = self._standard(depths(states)) @ self.opinion_coef_.T + self.opinion_intercept_
        return softmax(8 * scores, axis=1)  # ridge scores lie in about [-1, 1]

    def _compare(self, pieces: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Each piece of a text of several against the rest of it: features (m, layers + 11), and
        (text, piece) of each row (m, 2)."""
        features, where = [], []
        for start in range(0, len(pieces), 1000):  # bounded memory
            some, place = self._compare_some(pieces[start : start + 1000])
            features.append(some)
            where.append(np.add(place, [start, 0]))
        return np.concatenate(features), np.concatenate(where)

    def _compare_some(self, pieces):
        flat, sizes = self._embed_pieces(pieces)
        where, rest, rest_size = [], [], []
        for i, row in enumerate(_rows(pieces)):
            if len(row) < 2:
                continue
            weighted = flat[row] * sizes[row, None, None]  # (pieces, layers, hidden)
            total, size = weighted.sum(0), sizes[row].sum()
            for j, k in enumerate(row):
                where.append((i, j, k, len(row)))
                rest.append((total - weighted[j]) / (size - sizes[k]))
                rest_size.append(size - sizes[k])
        if not where:
            return np.zeros((0, flat.shape[1] + 11)), np.zeros((0, 2), dtype=int)
        where = np.array(where)
        piece, rest, n_rest = flat[where[:, 2]], np.array(rest), np.array(rest_size)
        n_piece = sizes[where[:, 2]]
        cosine = (unit(piece) * unit(rest)).sum(2)  # (m, layers)
        ours, theirs = self._opinions(piece), self._opinions(rest)
        agree = (ours * theirs).sum(1)
        alike = [cosine, agree, np.log(agree + 1e-3), ours.max(1), theirs.max(1)]
        theirs_by_us = ours[np.arange(len(ours)), theirs.argmax(1)]
        size = [np.log(n_piece), np.log(n_rest), n_piece / (n_piece + n_rest)]
        place = [where[:, 1] == 0, where[:, 1] == where[:, 3] - 1, np.log(where[:, 3])]
        return np.column_stack([*alike, theirs_by_us, *size, *place]), where[:, :2]

    def _restore(self, state):
        super()._restore(state)
        self.formats_ = {name: self.formats_[str(name)] for name in self.frames_}  # JSON's keys
        formats = {"begin": list_of(TEXT), "end": list_of(TEXT)}
        for name, sides in self.formats_.items():
            check_fields(f"'formats_' of {name!r}", sides, formats)
        if len(self.frames_) > 1:
            check_arrays(vars(self), detector_coef_=(None,))
            check_fields("state", vars(self), {"detector_intercept_": number(-1e300, 1e300)})


def _words_of_another(i: int, texts: list[str], names: list, rng) -> list[str]:
    """2 to 10 consecutive words of a random text of another frame, as one piece or two."""
    j = i
    while names[j] == names[i]:
        j = int(rng.integers(len(texts)))
    words = texts[j].split() or [""]
    size = int(rng.integers(2, 11))
    start = int(rng.integers(0, max(1, len(words) - size + 1)))
    words = words[start : start + size]
    cut = int(rng.integers(1, len(words))) if len(words) > 1 and rng.random() < 0.5 else 0
    return [" ".join(part) for part in (words[:cut], words[cut:]) if part]


def _rows(pieces: list[list[str]]) -> list[np.ndarray]:
    """Positions of each text's pieces in the flat list of all pieces."""
    ends = np.cumsum([len(row) for row in pieces])
    return [np.arange(end - len(row), end) for end, row in zip(ends, pieces, strict=True)]


# ---------------------------------------------------------------------- formats and pieces

_TOKEN = re.compile(r"\w+|[^\w\s]")
# Between lines, sentences and clauses after a colon, and around brackets and tags.
_BREAK = re.compile(
    r"\n+|(?<=[.!?])[\"')\]]*\s+|(?=[\[(<{#])|(?<=[\])}>])\s*|(?<=[:;])\s+| [-–—|]+ "
)


def learn_formats(texts: list[str], names: list, share: float) -> dict[str, dict]:
    """Word sequences (1 to 8 tokens) that begin or end a line in at least `share` of a frame's
    texts: frame -> ``{"begin": [...], "end": [...]}``. Punctuation alone is no format, and of less
    than five texts everything is common.
    """
    formats = {}
    for frame in dict.fromkeys(names):
        own = [text for text, name in zip(texts, names, strict=True) if name == frame]
        seen = {"begin": Counter(), "end": Counter()}
        for text in own:
            lines = [_TOKEN.findall(line) for line in text.splitlines()]
            for side, counts in seen.items():
                cuts = {
                    " ".join(line[:n] if side == "begin" else line[-n:])
                    for line in lines
                    for n in range(1, min(8, len(line) - 1) + 1)
                }
                counts.update(cuts)
        formats[frame] = {"begin": [], "end": []}
        for side, counts in seen.items():
            often = {cut for cut, n in counts.items() if n >= share * len(own) and len(own) >= 5}
            whole = str.startswith if side == "begin" else str.endswith
            inner = {cut for cut in often for more in often if cut != more and whole(more, cut)}
            formats[frame][side] = sorted(cut for cut in often - inner if re.search(r"\w", cut))
    return formats


def format_patterns(formats: dict[str, dict]) -> dict[tuple[str, str], re.Pattern]:
    """(side, word sequence) -> where it stands; longest first."""
    patterns = {}
    every = {(side, cut) for sides in formats.values() for side in sides for cut in sides[side]}
    for side, cut in sorted(every, key=lambda key: (-len(key[1]), key)):
        words = r"\s*".join(map(re.escape, cut.split(" ")))
        pattern = rf"^{words}(?!\w)[ \t]*" if side == "begin" else rf"[ \t]*(?<!\w){words}$"
        patterns[side, cut] = re.compile(pattern, re.MULTILINE)
    return patterns


def cut_formats(
    text: str, patterns: dict[tuple[str, str], re.Pattern]
) -> tuple[str, set[tuple[str, str]]]:
    """The text without learned formats, and those that were found: (side, word sequence).

    patterns: of `format_patterns`, made once for many texts. A text of which nothing would be left
    stays as it was.
    """
    found, rest = set(), text
    for key, pattern in patterns.items():
        rest, n = pattern.subn("", rest)
        if n:
            found.add(key)
    return (rest if rest.strip() else text), found


def split_pieces(text: str) -> list[str]:
    """The pieces of a text; one piece, the text itself, if it has no break."""
    pieces = [piece.strip() for piece in _BREAK.split(text)]
    return [piece for piece in pieces if piece] or [text]
