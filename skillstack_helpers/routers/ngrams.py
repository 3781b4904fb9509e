"""TF-IDF of n-grams as scikit-learn's, from 64-bit hashes in NumPy, each text read once.

scikit-learn cuts every n-gram out of the text as a string of its own. Here an n-gram is a rolling
hash of its code points, computed for all positions of all texts at once, and texts are kept as
(hash, count) for the next vectorizer that reads the same n-grams. No library on PyPI does this:
scikit-learn's own `HashingVectorizer` cuts the same strings, Rust and Cython vectorizers have
other rules or no wheels, and numba brings LLVM for a few lines.
"""

from __future__ import annotations

import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache

import numpy as np
import scipy.sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.preprocessing import normalize
from sklearn.utils.validation import check_is_fitted

_KEPT_BYTES = 1 << 27  # of n-grams kept, about 4,000 texts of 1,300 letters
_CHUNK = 1 << 20  # letters that are hashed at a time: bounded memory
_BLANK = ord(" ")
# An n-gram's hash is the polynomial of its mixed code points at _BASE, modulo 2^64. Saved routers
# hold such hashes: these numbers never change.
_BASE, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))


class NgramTfidf(TransformerMixin, BaseEstimator):
    """The values of scikit-learn's ``TfidfVectorizer(sublinear_tf=True)``, its columns in another
    order: that of the n-grams' hashes.

    analyzer: ``word``, ``char`` or ``char_wb``, and ngram_range: shortest and longest n-gram, both
    as scikit-learn's (of ``char_wb`` the shortest has at most 3 letters). lowercase: whether case
    is ignored. Fitted: `hashes_`, sorted uint64 (n-grams,), and `idf_`, float64 (n-grams,).

    Two n-grams with one hash would share a column; among 300,000 that has a probability of
    2e-9.

    >>> vectorizer = NgramTfidf("word", (1, 2)).fit(["so it goes", "it goes on"])
    >>> vectorizer.transform(["it goes", "never"]).toarray().round(2).max(1)
    array([0.58, 0.  ])
    """

    def __init__(
        self,
        analyzer: str = "word",
        ngram_range: tuple[int, int] = (1, 1),
        lowercase: bool = True,
    ):
        self.analyzer = analyzer
        self.ngram_range = ngram_range
        self.lowercase = lowercase

    def fit(self, texts: Sequence[str], y=None) -> NgramTfidf:
        """Learn n-grams and their inverse document frequencies; ValueError if there are none."""
        self.fit_transform(texts)
        return self

    def fit_transform(self, texts: Sequence[str], y=None) -> scipy.sparse.csr_matrix:
        """`fit`, and the rows of the texts: float64 (texts, n-grams)."""
        hashes, counts, ends = self.counted(texts)
        vocabulary, frequency = np.unique(hashes, return_counts=True)
        if not len(vocabulary):
            raise ValueError("empty vocabulary; perhaps the texts hold no n-gram")
        idf = np.log((len(texts) + 1) / (frequency + 1.0)) + 1.0
        return self.restore(vocabulary, idf)._weighted(hashes, counts, ends)

    def transform(self, texts: Sequence[str]) -> scipy.sparse.csr_matrix:
        """Rows of length 1, or 0 without any known n-gram: float64 (texts, n-grams)."""
        check_is_fitted(self)
        return self._weighted(*self.counted(texts))

    def restore(self, hashes: np.ndarray, idf: np.ndarray) -> NgramTfidf:
        """Take back what a fit has learned; raises ValueError for what it cannot have learned."""
        fits = hashes.dtype == np.uint64 and hashes.ndim == 1 and idf.shape == hashes.shape
        if not fits or (hashes[1:] <= hashes[:-1]).any():
            raise ValueError("the n-grams' hashes do not rise, or have no frequency each")
        self.hashes_, self.idf_ = hashes, idf.astype(np.float64, copy=False)
        # Hashes are uniform, so that their first bits say where they lie: the first hash with the
        # same bits is at most a few places before.
        bits = max(1, len(hashes).bit_length())
        self._shift = np.uint64(64 - bits)
        self._first = np.searchsorted(hashes, np.arange(1 << bits, dtype=np.uint64) << self._shift)
        self._padded = np.append(hashes, np.uint64(2**64 - 1))
        return self

    def _columns(self, hashes: np.ndarray) -> np.ndarray:
        """Column of each hash, -1 where it is unknown: (n,)."""
        place = self._first[hashes >> self._shift]
        found = self._padded[place]
        (rest,) = np.nonzero(found < hashes)
        while len(rest):
            place[rest] += 1
            found[rest] = self._padded[place[rest]]
            rest = rest[found[rest] < hashes[rest]]
        place[(found != hashes) | (place == len(self.hashes_))] = -1
        return place

    def counted(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hashes of each text's n-grams, rising, their counts, and the end of each text."""
        texts = list(texts)
        known = _KEPT.read(texts, (self.analyzer, *self.ngram_range, bool(self.lowercase)))
        ends = np.cumsum([len(hashes) for hashes, _ in known], dtype=np.int64)
        if not texts:
            return np.zeros(0, np.uint64), np.zeros(0, np.int32), ends
        return *(np.concatenate(part) for part in zip(*known, strict=True)), ends

    def _weighted(self, hashes, counts, ends) -> scipy.sparse.csr_matrix:
        columns = self._columns(hashes)
        known = columns >= 0
        starts = _number(known)[np.concatenate([[0], ends])]
        columns, counts = columns[known], counts[known]
        logarithm = np.log(np.arange(1, counts.max(initial=1) + 1)) + 1.0  # few counts are large
        values = logarithm[counts - 1] * self.idf_[columns]
        shape = (len(ends), len(self.hashes_))
        rows = scipy.sparse.csr_matrix((values, columns, starts), shape=shape)
        return normalize(rows, copy=False) if len(ends) else rows

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        return tags


# ---------------------------------------------------------------------- texts that were read


class _Kept:
    """(hashes, counts) of the texts asked last, for all vectorizers of one kind of n-grams."""

    def __init__(self, most: int):
        self.most, self.held = most, 0
        self._rows, self._lock = OrderedDict(), threading.Lock()

    def read(self, texts: list[str], kind: tuple) -> list[tuple[np.ndarray, np.ndarray]]:
        with self._lock:
            rows = {text: self._rows[text, kind] for text in texts if (text, kind) in self._rows}
            for text in rows:
                self._rows.move_to_end((text, kind))
        new = [text for text in dict.fromkeys(texts) if text not in rows]
        for text, row in zip(new, count_ngrams(new, *kind), strict=True):
            rows[text] = row
            self._keep((text, kind), row)
        return [rows[text] for text in texts]

    def _keep(self, key: tuple, row: tuple) -> None:
        with self._lock:
            if key not in self._rows:
                self._rows[key] = row
                self.held += _size(key, row)
            while self.held > self.most:
                self.held -= _size(*self._rows.popitem(last=False))


def _size(key: tuple, row: tuple) -> int:
    return sys.getsizeof(key[0]) + sum(part.nbytes for part in row) + 500  # objects around


_KEPT = _Kept(_KEPT_BYTES)


# ---------------------------------------------------------------------- n-grams of many texts


def count_ngrams(
    texts: Sequence[str], analyzer: str, shortest: int, longest: int, lowercase: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each text its n-grams: rising hashes, uint64 (n,), and how often each is there, int32.

    N-grams are those of scikit-learn's analyzers: ``word`` those of tokens of two letters and more,
    joined by one blank; ``char`` those across words, runs of white space read as one blank;
    ``char_wb`` those of each word between two blanks.
    """
    read = {"word": _of_words, "char": _of_letters, "char_wb": _within_words}[analyzer]
    if not 1 <= shortest <= longest or (analyzer == "char_wb" and shortest > 3):
        raise ValueError(f"{analyzer} n-grams of {shortest} to {longest}")
    for chunk in _chunks(texts):
        chunk = [text.lower() for text in chunk] if lowercase else chunk
        codes, ends = _code_points(chunk)
        hashes, ends = read(codes, ends, shortest, longest)
        yield from _counts(hashes, ends)


def hash_strings(strings: Sequence[str]) -> np.ndarray:
    """The hashes that the strings have as n-grams, uint64 (n,)."""
    codes, ends = _code_points(strings)
    return _spans(codes, _starts(ends), ends)


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk, size = [], 0
    for text in texts:
        if size + len(text) > _CHUNK and chunk:
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += len(text)
    if chunk:
        yield chunk


def _code_points(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Code points of all texts, uint32 (letters,), and where each text ends."""
    encoded = "".join(texts).encode("utf-32-le", "surrogatepass")  # half an emoji is a letter too
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return np.frombuffer(encoded, "<u4"), ends


@cache
def _table(pattern: str) -> np.ndarray:
    """Which code points the pattern matches, bool (1114112,)."""
    table = np.zeros(sys.maxunicode + 1, dtype=bool)
    for found in re.finditer(pattern, "".join(map(chr, range(len(table))))):
        table[found.start() : found.end()] = True
    return table


def _mixed(codes: np.ndarray) -> np.ndarray:
    """Code points as 64-bit numbers that look random."""
    mixed = (codes.astype(np.uint64) + np.uint64(1)) * _MIX
    mixed ^= mixed >> np.uint64(32)
    mixed *= _MIX
    return mixed


def _starts(ends: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], ends[:-1]]) if len(ends) else ends


def _rolling(hashes, ends, shortest: int, longest: int, append) -> np.ndarray:
    """Hashes of the n-grams that begin at each place, (places, sizes); 0 where the part that ends
    at one of `ends` is too short.

    hashes: of the n-grams of size 1; append(rolled, n): `rolled` with the n-th place behind it.
    """
    out = np.zeros((len(hashes), longest - shortest + 1), dtype=np.uint64)
    begins = np.zeros(len(hashes) + 1, dtype=bool)
    begins[ends] = True
    whole, rolled = np.ones(len(hashes), dtype=bool), hashes
    for n in range(1, min(longest, len(hashes)) + 1):
        if n > 1:
            whole = whole[:-1] & ~begins[n - 1 : -1]
            rolled = append(rolled[:-1], n)
        if n >= shortest:
            out[: len(rolled), n - shortest] = np.where(whole, rolled, 0)
    return out


def _rolling_letters(codes, ends, shortest: int, longest: int) -> np.ndarray:
    mixed = _mixed(codes)
    append = lambda rolled, n: rolled * _BASE + mixed[n - 1 :]  # noqa: E731
    return _rolling(mixed, ends, shortest, longest, append)


def _of_letters(codes, ends, shortest, longest):
    space = _table(r"\s+")[codes]
    before, behind = np.zeros_like(space), np.zeros_like(space)
    before[1:], behind[:-1] = space[:-1], space[1:]
    some = ends > _starts(ends)  # runs end with their text
    before[_starts(ends)[some]] = behind[ends[some] - 1] = False
    codes = np.where(space & (before | behind), np.uint32(_BLANK), codes)
    kept = ~(space & before)
    ends = _number(kept)[ends]
    return _rolling_letters(codes[kept], ends, shortest, longest), ends


def _within_words(codes, ends, shortest, longest):
    inside = ~_table(r"\s+")[codes]
    begins, stops = _runs(inside, ends)
    padded_ends = np.cumsum(stops - begins + 2)
    inner = np.ones(padded_ends[-1] if len(begins) else 0, dtype=bool)
    inner[_starts(padded_ends)] = inner[padded_ends - 1] = False
    padded = np.full(len(inner), _BLANK, dtype=np.uint32)
    padded[inner] = codes[inside]
    ends = np.concatenate([[0], padded_ends])[np.searchsorted(begins, ends)]
    return _rolling_letters(padded, padded_ends, shortest, longest), ends


def _of_words(codes, ends, shortest, longest):
    begins, stops = _runs(_table(r"\w+")[codes], ends)
    long = stops - begins >= 2
    begins, stops = begins[long], stops[long]
    ends = np.searchsorted(begins, ends)
    words = _spans(codes, begins, stops)
    shift = _powers(len(codes))[0][stops - begins]
    blank = _mixed(np.array([_BLANK]))

    def append(rolled, n):
        return (rolled * _BASE + blank) * shift[n - 1 :] + words[n - 1 :]

    return _rolling(words, ends, shortest, longest, append), ends


def _number(true: np.ndarray) -> np.ndarray:
    """How many true places lie before each place, and before the end."""
    return np.concatenate([[0], np.cumsum(true)])


def _runs(inside: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of true places begin and end; a run ends with its text."""
    change = np.zeros(len(inside) + 1, dtype=bool)
    change[1:-1] = inside[1:] != inside[:-1]
    change[0] = change[-1] = True
    change[ends] = True
    (edges,) = np.nonzero(change)
    begins, stops = edges[:-1], edges[1:]
    true = inside[begins]
    return begins[true], stops[true]


@lru_cache(maxsize=2)
def _powers_to(bits: int) -> tuple[np.ndarray, np.ndarray]:
    powers = np.full((2, 1 << bits), [[_BASE], [_INVERSE]])
    powers[:, 0] = 1
    return tuple(np.multiply.accumulate(powers, axis=1))


def _powers(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers 0 to n, and more, of the base and of its inverse."""
    return _powers_to(max(20, n.bit_length()))


def _spans(codes: np.ndarray, begins: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Hashes of the code points from `begins` to before `stops`, from running sums."""
    powers, inverse = _powers(len(codes))
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(_mixed(codes) * inverse[: len(codes)], out=sums[1:])
    return (sums[stops] - sums[begins]) * powers[np.maximum(stops, 1) - 1]


def _counts(hashes: np.ndarray, ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each text's hashes (places, sizes), 0 for none, as what is there and how often."""
    flat, ends = hashes.ravel(), ends * hashes.shape[1]
    for start, end in zip(_starts(ends).tolist(), ends.tolist(), strict=True):
        flat[start:end].sort()
    new = np.ones(len(flat), dtype=bool)
    new[1:] = flat[1:] != flat[:-1]
    new[_starts(ends)[ends > _starts(ends)]] = True
    (first,) = np.nonzero(new)
    counts = np.diff(first, append=len(flat)).astype(np.int32)
    some = flat[first] != 0
    ends = _number(some)[np.searchsorted(first, ends)]
    found, counts = flat[first[some]], counts[some]
    for start, end in zip(_starts(ends).tolist(), ends.tolist(), strict=True):
        yield found[start:end].copy(), counts[start:end].copy()
