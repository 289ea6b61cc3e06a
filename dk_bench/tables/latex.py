"""Text for pdflatex, in ASCII: every character as a command of plain LaTeX where there is one.

What a font of the package CJK has besides (Chinese, Japanese, Korean, Cyrillic, many signs) is set in that font; the
rest, pictographs say, stands as its code point, ``U+1F99D``. No user's name may stop a document, or become another.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterable


def _pairs(words: str) -> dict[str, str]:
    """Returns what stands for each character, which the words name in turns with it."""
    characters = words.split()
    return dict(zip(characters[::2], characters[1::2], strict=True))


MATHS = _pairs(r"""
    < < > > | | ± \pm × \times ÷ \div µ \mu · \cdot − - ≤ \leq ≥ \geq ≠ \neq ≈ \approx ∞ \infty √ \surd ← \leftarrow
    → \rightarrow ↑ \uparrow ↓ \downarrow ↔ \leftrightarrow ¬ \neg ° ^\circ ¹ ^1 ² ^2 ³ ^3
    α \alpha β \beta γ \gamma δ \delta ε \epsilon ζ \zeta η \eta θ \theta ι \iota κ \kappa λ \lambda μ \mu ν \nu
    ξ \xi π \pi ρ \rho σ \sigma τ \tau υ \upsilon φ \phi χ \chi ψ \psi ω \omega Γ \Gamma Δ \Delta Θ \Theta
    Λ \Lambda Ξ \Xi Π \Pi Σ \Sigma Υ \Upsilon Φ \Phi Ψ \Psi Ω \Omega
""")
COMMANDS = _pairs(r"""
    \ textbackslash ~ textasciitilde ^ textasciicircum ' textquotesingle ` textasciigrave – textendash — textemdash
    ‘ textquoteleft ’ textquoteright “ textquotedblleft ” textquotedblright … ldots ß ss æ ae Æ AE œ oe Œ OE ø o Ø O
    ł l Ł L ı i § S ¶ P © copyright £ pounds
""")
SHOWN = {
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    **{sign: f"${formula}$" for sign, formula in MATHS.items()},
    **{sign: rf"\{command}{{}}" for sign, command in COMMANDS.items()},
    '"': r"\texttt{\char34}",
    "\xa0": "~",
}
_COMBINING = "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0323\u0327\u0331"
ACCENTS = dict(zip(_COMBINING, "`'^~=u.\"rHvdcb", strict=True))  # characters that put a mark on a letter
FONTS = {"gbsn": "gb2312", "bsmi": "big5", "min": "shift_jis", "mj": "euc_kr"}  # of the package CJK, and what they have
LACKING = "\u2015\u203e\u223c\uff64"  # of these characters the fonts have none
NEEDED = {"CJK": (r"\begin{CJK}",), "textcomp": (r"\textquotesingle", r"\textasciigrave")}
BREAKS = re.compile(r"[\t\n\v\f\r\u2028\u2029]")


def escape(text: str) -> str:
    """Returns a text as pdflatex shows it, in a paragraph, a cell or a caption; line breaks become blanks."""
    text = BREAKS.sub(" ", unicodedata.normalize("NFC", text))
    runs = itertools.groupby(text, key=_font)
    shown = "".join(_in_font(font, run) if font else "".join(map(_alone, run)) for font, run in runs)
    shown = re.sub(r"([-,])(?=\1)", r"\1{}", shown)  # two of them would be a dash, or a quotation mark
    return "{}" + shown if shown[:1] in ("[", "*") else shown  # which the \\ before would take for its own


def packages(source: str) -> list[str]:
    """Returns the packages that escaped text asks for."""
    return [name for name, commands in NEEDED.items() if any(command in source for command in commands)]


def _alone(sign: str) -> str:
    """Returns a character in the document's own font, or its code point."""
    if sign in SHOWN:
        return SHOWN[sign]
    if " " <= sign <= "}":
        return sign
    letter, *marks = unicodedata.normalize("NFD", sign)
    if not marks or not letter.isascii() or not set(marks) <= ACCENTS.keys():
        return rf"\texttt{{U+{ord(sign):04X}}}"
    for mark in marks:
        letter = rf"\{ACCENTS[mark]}{{{letter}}}"
    return letter


def _font(sign: str) -> str | None:
    """Returns the font of the package CJK that a character is set in, if it has to be."""
    if sign in LACKING or _alone(sign)[:10] != r"\texttt{U+":
        return None
    return next((font for font, charset in FONTS.items() if len(sign.encode(charset, "ignore")) == 2), None)


def _in_font(font: str, signs: Iterable[str]) -> str:
    codes = "".join(rf"\Unicode{{{ord(sign) // 256}}}{{{ord(sign) % 256}}}" for sign in signs)
    return rf"\begin{{CJK}}{{UTF8}}{{{font}}}{codes}\end{{CJK}}"
