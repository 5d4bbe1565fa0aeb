"""Should you do continual pre-training at all, and with which settings before there are pilots.

Both are priors, not findings: what is published is named with its source, all other thresholds are rules of thumb and
say so. Pilots replace them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Use = Literal["knowledge", "style", "facts-that-change", "task"]
Method = Literal["cpt", "fine-tuning", "lora", "rag", "nothing"]
Basis = Literal["measured", "told", "published", "rule of thumb"]
Shift = Literal["weak", "moderate", "strong"]

USES: tuple[Use, ...] = ("knowledge", "style", "facts-that-change", "task")
TITLES: dict[Method, str] = {
    "cpt": "continual pre-training",
    "fine-tuning": "supervised fine-tuning",
    "lora": "adapters (LoRA)",
    "rag": "retrieval (RAG)",
    "nothing": "leave the model as it is",
}

TOO_FEW_TOKENS = 10e6  # rule of thumb: below, each fact stands there once or twice
ENOUGH_TOKENS = 100e6  # rule of thumb: above, text repeats its subject in enough words by itself
WEAK_GAP, STRONG_GAP = 1.1, 1.3  # rule of thumb: bits per byte of the domain over those of general text
MOST_EPOCHS = 4.0  # published: arXiv:2305.16264
SMALL_MODEL = 700e6  # rule of thumb: below, models are re-warmed to their own peak without harm
REPLAY: dict[Shift | None, float] = {"weak": 0.05, "moderate": 0.1, "strong": 0.25, None: 0.1}
LR_BY_SIZE = (
    (2e9, 2e-5, "LLaMA3.2-1B on Pile-of-Law (arXiv:2505.07796)"),
    (6e9, 3e-5, "OpenLLaMA-3B: 3e-5 good, 3e-4 harmful (arXiv:2406.14833)"),
    (float("inf"), 5e-6, "Llama-3-8B (arXiv:2409.07431); ChipNeMo 7B and 13B (arXiv:2311.00176)"),
)
"""Parameters up to which, peak rate, source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """A number of the situation and how it is known."""

    value: float
    basis: Basis
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """What is known; None is unknown."""

    use: Use = "knowledge"
    corpus_tokens: Fact | None = None
    """Training tokens of the domains."""
    gap: Fact | None = None
    """Bits per byte (or loss per token) of the base model on the domain over those on general text."""
    budget_tokens: Fact | None = None
    num_params: float | None = None
    full_fits: bool | None = None
    """Whether a full training step fits the hardware."""
    lora_fits: bool | None = None
    pretrain_peak_lr: float | None = None

    @property
    def shift(self) -> Shift | None:
        """How far the domain is, by the gap."""
        if self.gap is None:
            return None
        return "weak" if self.gap.value < WEAK_GAP else "strong" if self.gap.value >= STRONG_GAP else "moderate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """A sentence and what it stands on."""

    text: str
    basis: Basis
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """What to do, why, and what would change it."""

    method: Method
    sure: bool
    """False where something that decides is not known."""
    reasons: tuple[Reason, ...]
    beside: tuple[str, ...]
    """What goes with it, or comes instead if something changes."""
    unknown: tuple[str, ...]
    """What was not known, and how to tell it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One setting of the default recipe."""

    name: str
    value: float | str
    basis: Basis
    source: str


RETRIEVAL = Reason(
    text="retrieval beats unsupervised training at putting new facts into answers, and its facts can be replaced",
    basis="published",
    source="arXiv:2312.05934",
)
FORM = Reason(
    text="fine-tuning teaches a model to use what it knows; new facts are learnt slowly and raise made-up answers",
    basis="published",
    source="arXiv:2405.05904",
)
LORA = Reason(
    text="adapters learn less than full weights on 20B tokens of a new domain, at any rank tried, and forget less",
    basis="published",
    source="arXiv:2405.09673",
)
VARIETY = Reason(
    text="a fact has to be met in hundreds of wordings to be learnt; small corpora do not hold them",
    basis="published",
    source="arXiv:2409.07431",
)
ADAPT = Reason(
    text="a second phase of pre-training on the domain helps the tasks that follow, with few labels and with many",
    basis="published",
    source="arXiv:2004.10964",
)


def advise(situation: Situation) -> Advice:
    """Continual pre-training, fine-tuning, adapters, retrieval or nothing."""
    unknown = []
    if situation.corpus_tokens is None:
        unknown.append("corpus size: pack the corpora, or give --corpus-tokens")
    if situation.gap is None:
        unknown.append("domain gap: train a pilot, or give --domain-perplexity and --general-perplexity of the base")
    choose = {"facts-that-change": _changing, "style": _style, "task": _task, "knowledge": _knowledge}
    method, reasons, beside = choose[situation.use](situation)
    decided_by_corpus = situation.use in ("knowledge", "task")
    return Advice(
        method=method,
        sure=not (decided_by_corpus and unknown),
        reasons=tuple(reasons),
        beside=tuple(beside),
        unknown=tuple(unknown),
    )


REWRITE = (
    "to train nevertheless, write the corpus anew in many wordings first (arXiv:2409.07431: 455M tokens from 1.3M)"
)

Choice = tuple[Method, list[Reason], list[str]]


def _changing(situation: Situation) -> Choice:
    beside = ["train the language around the facts (cpt) only if answers stay bad with the right text retrieved"]
    return "rag", [RETRIEVAL, FORM], beside


def _style(situation: Situation) -> Choice:
    reasons = [
        Reason(text="style is form: some thousand good examples carry it", basis="rule of thumb", source="-"),
        Reason(
            text="on instruction data adapters of high rank come near full weights and forget less",
            basis="published",
            source="arXiv:2405.09673",
        ),
    ]
    return "lora", reasons, ["full fine-tuning if adapters of rank 256 fall short"]


def _task(situation: Situation) -> Choice:
    beside = []
    if _tokens(situation) >= ENOUGH_TOKENS and situation.shift != "weak":
        beside.append("continual pre-training on the domain first: there is enough text for it (arXiv:2004.10964)")
    return "fine-tuning", [FORM, ADAPT], beside


def _knowledge(situation: Situation) -> Choice:
    tokens = _tokens(situation)
    size = f"the domain has {_words(tokens)} tokens"
    if situation.shift == "weak" and situation.gap is not None:
        near = Reason(
            text=f"the base model already reads the domain nearly as well as general text ({situation.gap.value:.2f} "
            f"times the bits per byte, below {WEAK_GAP:g})",
            basis="rule of thumb",
            source=situation.gap.source,
        )
        told = "a base model can read a text well and still not know its facts: measure with questions, then retrieval"
        return "nothing", [near], [told]
    if situation.corpus_tokens is not None and tokens < TOO_FEW_TOKENS:
        few = Reason(text=f"{size}, fewer than {_words(TOO_FEW_TOKENS)}", basis="rule of thumb", source="-")
        return (
            "rag",
            [few, VARIETY, RETRIEVAL],
            [REWRITE],
        )
    if situation.budget_tokens is not None and situation.budget_tokens.value < TOO_FEW_TOKENS:
        little = Reason(
            text=f"the budget pays for {_words(situation.budget_tokens.value)} tokens, fewer than "
            f"{_words(TOO_FEW_TOKENS)}",
            basis="rule of thumb",
            source=situation.budget_tokens.source,
        )
        return "rag", [little, RETRIEVAL], ["continual pre-training with a larger budget or a smaller model"]
    if situation.full_fits is False and situation.lora_fits:
        room = Reason(text="full training does not fit the hardware, adapters do", basis="measured", source="memory")
        return "lora", [room, LORA], ["full weights on more devices: cptplan cost says how many"]
    if situation.corpus_tokens is not None and tokens < ENOUGH_TOKENS:
        middling = Reason(
            text=f"{size}, between {_words(TOO_FEW_TOKENS)} and {_words(ENOUGH_TOKENS)}: enough for terms and style, "
            "hardly for rare facts",
            basis="rule of thumb",
            source="-",
        )
        beside = ["retrieval beside it for facts", f"up to {MOST_EPOCHS:g} epochs (arXiv:2305.16264)"]
        return "cpt", [middling, VARIETY], beside
    enough = Reason(
        text=f"{size}: enough to learn from" if situation.corpus_tokens else "corpus size is not known",
        basis="rule of thumb",
        source=situation.corpus_tokens.source if situation.corpus_tokens else "-",
    )
    far = Reason(
        text="knowledge comes with pre-training, and loss on the domain says how much is left to learn",
        basis="published",
        source="arXiv:2405.05904",
    )
    return "cpt", [enough, far, ADAPT, LORA], ["retrieval beside it for facts that must be exact"]


def recipe(situation: Situation) -> tuple[Setting, ...]:
    """Settings of a first run by situation: the prior of the pilots, and what is left without them."""
    replay, rate = _replay(situation), _peak_lr(situation)
    settings = [
        rate,
        replay,
        Setting(
            name="schedule",
            value="warm-up over 1 % of the steps, cosine to a tenth of the peak",
            basis="published",
            source="arXiv:2403.08763; the length of the warm-up matters little (arXiv:2308.04014)",
        ),
        Setting(
            name="start",
            value="the checkpoint from before the decay, if there is one",
            basis="published",
            source="arXiv:2505.07796, 3.3: a higher loss potential learns more",
        ),
    ]
    if situation.corpus_tokens is not None:
        most = MOST_EPOCHS * situation.corpus_tokens.value / (1.0 - float(replay.value))
        limit = Setting(
            name="total_tokens",
            value=most,
            basis="published",
            source=f"{MOST_EPOCHS:g} epochs of the domain (arXiv:2305.16264), {replay.value:.0%} replay beside",
        )
        budget = situation.budget_tokens
        if budget is not None and budget.value < most:
            limit = Setting(name="total_tokens", value=budget.value, basis=budget.basis, source=budget.source)
        settings.append(limit)
    return tuple(settings)


def _replay(situation: Situation) -> Setting:
    shift = situation.shift
    told = {
        "weak": "5 % for a weak shift (arXiv:2403.08763)",
        "strong": "25 % for a strong shift (arXiv:2403.08763)",
        "moderate": "between the 5 % of a weak and the 25 % of a strong shift (arXiv:2403.08763)",
    }
    basis: Basis = "published" if shift in ("weak", "strong") else "rule of thumb"
    source = told[shift] if shift else "the shift is not known: between 5 % and 25 % (arXiv:2403.08763)"
    return Setting(name="replay_ratio", value=REPLAY[shift], basis=basis, source=source)


def _peak_lr(situation: Situation) -> Setting:
    size, peak = situation.num_params, situation.pretrain_peak_lr
    if peak is not None and size is not None and size < SMALL_MODEL:
        return Setting(
            name="peak_lr",
            value=peak,
            basis="published",
            source="a small model is warmed up again to its pre-training peak (arXiv:2403.08763: 405M)",
        )
    if size is None:
        if peak is None:
            return Setting(
                name="peak_lr", value="unknown", basis="rule of thumb", source="give --model; a tenth of its own peak"
            )
        return Setting(
            name="peak_lr", value=0.1 * peak, basis="rule of thumb", source="a tenth of the pre-training peak"
        )
    rate, source = next((rate, source) for limit, rate, source in LR_BY_SIZE if size <= limit)
    if size < SMALL_MODEL:
        return Setting(name="peak_lr", value=2e-4, basis="published", source="106M models (arXiv:2505.07796)")
    if peak is not None and 0.1 * peak < rate:
        return Setting(
            name="peak_lr", value=0.1 * peak, basis="rule of thumb", source="a tenth of the pre-training peak"
        )
    return Setting(name="peak_lr", value=rate, basis="published", source=source)


def _tokens(situation: Situation) -> float:
    return situation.corpus_tokens.value if situation.corpus_tokens is not None else float("nan")


def _words(tokens: float) -> str:
    """A count in words: 1.5B, 300M, 20k."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if tokens >= size:
            return f"{tokens / size:.3g}{unit}"
    return f"{tokens:.0f}" if tokens == tokens else "an unknown number of"
