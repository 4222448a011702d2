"""HTML of one latent: tokens shaded by activation, its histogram as SVG, output tokens."""

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

BEFORE, AFTER = 28, 14  # tokens shown around the peak
_WIDTH, _HEIGHT, _BASE = 300, 96, 78  # of the histogram, and its baseline; in CSS pixels
_SHOWN = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def visible(token: str, edges: bool = False) -> str:
    """`token` as it can be read: line ends and other invisible characters get a sign.

    The marks that byte-level and SentencePiece vocabularies use for a space or line end (Ġ, ▁, Ċ)
    are shown as what they stand for. With `edges`, spaces at either end are shown as dots.
    """
    token = token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")
    shown = "".join(_SHOWN.get(c) or (_code(c) if _hidden(c) else c) for c in token)
    if not edges:
        return shown
    body = shown.strip(" ")
    if not body:
        return "·" * len(shown) or "∅"
    start = len(shown) - len(shown.lstrip(" "))
    return "·" * start + body + "·" * (len(shown) - start - len(body))


def strongest(latent: Mapping[str, Any]) -> tuple[float, float]:
    """Largest positive and largest negative |activation| in a latent's contexts."""
    values = [
        activation
        for side in ("positive", "negative")
        for context in latent["contexts"][side]
        for activation in context["activations"]
    ]
    return max([v for v in values if v > 0], default=0.0), -min(
        [v for v in values if v < 0], default=0.0
    )


def context_html(context: Mapping[str, Any], scale: tuple[float, float]) -> Markup:
    """Tokens around the peak, shaded by |activation| / `scale` of that sign; the peak is marked."""
    tokens, activations, peak = context["tokens"], context["activations"], context["peak"]
    start, stop = max(0, peak - BEFORE), min(len(tokens), peak + AFTER + 1)
    parts = [Markup("… ")] if start else []
    for i in range(start, stop):
        shown, value = visible(tokens[i]), activations[i]
        if value == 0 and i != peak:
            parts.append(escape(shown))
            continue
        # The space that begins a word stays unshaded, unless it is all there is.
        body = shown.lstrip(" ") or shown
        parts.append(escape(shown[: len(shown) - len(body)]))
        largest = scale[value < 0]
        strength = abs(value) / largest if largest else 0.0
        classes = ("n" if value < 0 else "p") + (" peak" if i == peak else "")
        span = f'<span class="{classes}" style="--a:{strength:.2f}" title="{signed(value)}">'
        parts.append(Markup(f"{span}{escape(body)}</span>"))  # only the body comes from the run
    return Markup("").join([*parts, Markup(" …") if stop < len(tokens) else Markup("")])


def tokens_html(pairs: Iterable[Sequence[Any]]) -> Markup:
    """Output tokens with the amount each one's logit moves."""
    item = Markup('<span class="token">{}<small>{}</small></span>')
    return Markup(" ").join(item.format(visible(t, edges=True), signed(v)) for t, v in pairs)


def histogram_svg(histogram: Mapping[str, Sequence[float]]) -> Markup:
    """One bar per bin, coloured by sign (grey across zero), with height log(1 + n)."""
    edges, counts = histogram["edges"], histogram["counts"]
    low, high = min(edges[0], 0.0), max(edges[-1], 0.0)
    tallest = math.log1p(max(counts)) or 1.0

    def x(value: float) -> float:
        return 4 + (_WIDTH - 8) * (value - low) / (high - low)

    bars = []
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            height = max(1.5, (_BASE - 14) * math.log1p(count) / tallest)
            kind = "z" if left < 0 < right else "n" if right <= 0 else "p"
            width = max(0.6, x(right) - x(left) - 0.6)
            bars.append(
                Markup(
                    '<rect class="{}" x="{}" y="{}" width="{}" height="{}">'
                    "<title>{} to {}: {}</title></rect>"
                ).format(
                    kind,
                    f"{x(left):.1f}",
                    f"{_BASE - height:.1f}",
                    f"{width:.1f}",
                    f"{height:.1f}",
                    signed(left),
                    signed(right),
                    f"{count:,}",
                )
            )
    marks = [(x(0.0), "middle", "0")]
    if x(0.0) > 40:
        marks.append((x(low), "start", signed(low)))
    if _WIDTH - x(0.0) > 40:
        marks.append((x(high), "end", signed(high)))
    label = Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>')
    texts = [label.format(f"{at:.1f}", _HEIGHT - 6, anchor, words) for at, anchor, words in marks]
    return Markup(
        '<svg class="histogram" viewBox="0 0 {w} {h}" role="img" aria-label="activation histogram">'
        '<text x="4" y="9">tokens per bin, log scale; most {top}</text>{bars}'
        '<line x1="0" x2="{w}" y1="{b}" y2="{b}"/>'
        '<line class="zero" x1="{zero}" x2="{zero}" y1="14" y2="{below}"/>{texts}</svg>'
    ).format(
        w=_WIDTH,
        h=_HEIGHT,
        b=_BASE,
        below=_BASE + 4,
        zero=f"{x(0.0):.1f}",
        top=f"{max(counts):,}",
        bars=Markup("").join(bars),
        texts=Markup("").join(texts),
    )


def signed(value: float) -> str:
    """Three significant digits with a sign: +3.21, −0.0450, 0."""
    if value == 0:
        return "0"
    size = abs(value)
    digits = f"{size:,.0f}" if size >= 1000 else f"{size:#.3g}".rstrip(".")
    return ("−" if value < 0 else "+") + digits


def _hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")


def _code(character: str) -> str:
    return f"‹U+{ord(character):04X}›"
