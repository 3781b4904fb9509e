"""What things are called, and how they are drawn: one dictionary for tables, figures and prose.

Runs keep the names on the left (of parameters, methods and metrics); readers see those on the
right. Routers are called what the parameter `router` calls them.
"""

from __future__ import annotations

import re

NAMES = {
    # methods
    "frames": "saved frames",
    "saved frame": "saved frames",
    "own frame": "saved frames",
    "second_look": "second look",
    "merged": "merged frames",
    "distilled": "distilled frames",
    "sequential": "latest adapter",
    "joint": "joint training",
    "joint_wide": "joint, stack-sized",
    "joint_shared": "joint, shared heads",
    "independent": "independent adapters",
    "replay": "replay",
    "ewc": "EWC",
    "ewc_online": "online EWC, equal bytes",
    "olora": "O-LoRA",
    "ewc_replay": "gated EWC + replay",
    "generative_replay": "generative replay",
    "tfidf": "TF-IDF per task",
    "tfidf_union": "TF-IDF, all labels",
    "lda": "LDA per task",
    "lda_union": "LDA, all labels",
    "baseline": "full fine-tuning",
    "incremental_lora": "incremental LoRA",
    "progressive_prompts": "Progressive Prompts",
    "nlora": "N-LoRA",
    "pslora": "PS-LoRA",
    # ways to shrink a stack
    "full": "full stack",
    "published anchor": "one anchor, published",
    "chosen anchor": "one anchor, chosen",
    "rule: online": "rule, online",
    "rule: at the end": "rule, at the end",
    "rule: at the end, int8": "rule, at the end, int8",
    # what is shown to a frame that writes
    "right memory": "memory of the right frame",
    "wrong memory": "memory of a wrong frame",
    "random": "random examples",
    "energy 0.8": "lower rank, 80 % energy",
    "energy 0.6": "lower rank, 60 % energy",
    "merge: linear": "merge, linear",
    "merge: ties": "merge, TIES",
    "merge: dare_linear": "merge, DARE linear",
    "merge: dare_ties": "merge, DARE TIES",
    "merge: svd": "merge, SVD",
    # metrics
    "acc": "told the task (%)",
    "task_aware": "told the task (%)",
    "routed": "routed (%)",
    "mixed": "mixed (%)",
    "routed_micro": "routed, over all texts (%)",
    "coverage": "90 % label sets hold (%)",
    "set_size": "labels in a set",
    "bwt": "BWT (pp)",
    "forgetting": "forgetting (pp)",
    "latest_drop": "latest adapter's drop (pp)",
    "stack_drop": "saved frames' drop (pp)",
    "final_drop": "drop (pp)",
    "router_accuracy": "right frame (%)",
    "router_accuracy_macro": "right frame, mean over tasks (%)",
    "stray_answered": "misrouted, yet correct (%)",
    "ece": "ECE (%)",
    "ece_uncalibrated": "ECE, uncalibrated (%)",
    "fallback": "fallback (%)",
    "depth": "depth (frames)",
    "wears_rate": "frame of the format picked (%)",
    "trap_rate": "frame of the keywords picked (%)",
}

# Millions of parameters, as counted (Llama's: as its card says).
SIZES = {
    "minilm": 22.7,
    "mpnet": 109.5,
    "smollm2-135m": 134.5,
    "gemma3-270m": 268.1,
    "meta-llama/Llama-3.2-1B-Instruct": 1235.8,
    "meta-llama/Llama-3.2-3B-Instruct": 3212.7,
}

# Okabe and Ito's colours and two more, told apart with any colour vision (tests/test_gallery.py).
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#F0E442", "#000000"
BROWN, GREY = "#6B4226", "#AFAFAF"
STYLES = {  # display name -> colour, marker: the same in the whole suite
    "saved frames": (BLUE, "o"),
    "second look": (BLUE, "s"),
    "merged frames": (BLUE, "d"),
    "distilled frames": (BLUE, "*"),
    "latest adapter": (RED, "s"),
    "routed stack": (GREEN, "D"),
    "mixed stack": (SKY, "D"),
    "mixed, labels told": (ORANGE, "D"),
    "joint training": (BLACK, "^"),
    "joint, stack-sized": (BLACK, "<"),
    "joint, shared heads": (BLACK, ">"),
    "EWC": (ORANGE, "v"),
    "online EWC, equal bytes": (GREEN, "v"),
    "independent adapters": (SKY, "P"),
    "replay": (PURPLE, "X"),
    "O-LoRA": (YELLOW, "*"),
    "TF-IDF per task": (BROWN, "h"),
    "TF-IDF, all labels": (BROWN, "H"),
    "LDA per task": (BROWN, "p"),
    "LDA, all labels": (BROWN, "P"),
    "gated EWC + replay": (ORANGE, "<"),
    "generative replay": (PURPLE, ">"),
    "full fine-tuning": (RED, "p"),
    "BitStack": (PURPLE, "d"),
    "best single frame": (PURPLE, "v"),
    "best frame per task": (BLACK, "d"),
    "oracle": (BLACK, "_"),
    "chance": (GREY, "|"),
    "published": (GREY, "o"),
    "hybrid_chain": (BLUE, ">"),
    "hybrid_svm": (SKY, "<"),
    "hybrid_embed": (ORANGE, "s"),
    "scaffold_blind": (GREEN, "^"),
    "trunk": (BROWN, "D"),
    "gate": (GREY, "X"),
    "centroid": (PURPLE, "h"),
    "profile": (YELLOW, "P"),
    "arrow": (RED, "X"),
    "format augmented": (BROWN, "8"),
    "keyword augmented": (BLACK, "*"),
}
OTHERS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BROWN, BLACK)  # for what has no name here
MARKERS = "osD^vPX*"


def name(key: str) -> str:
    """How a method, metric or way is called where people read.

    >>> name("olora"), name("bitstack_0.12"), name("basis of rank 8")
    ('O-LoRA', 'BitStack 0.12', 'basis of rank 8')
    """
    return NAMES.get(key) or re.sub(r"^bitstack_", "BitStack ", key)


def style(label: str, place: int = 0) -> dict:
    """Colour and marker of a name, as keyword arguments of matplotlib's ``plot``. Names that are
    not in `STYLES` get what the `place` among them gives."""
    other = OTHERS[place % len(OTHERS)], MARKERS[place % len(MARKERS)]
    color, marker = STYLES.get(label, other)
    return {"label": label, "color": color, "marker": marker}
