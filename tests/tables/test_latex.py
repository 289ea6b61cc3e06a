"""What users call models and data comes out of every format as it is: LaTeX, Markdown, CSV."""

import csv
import io
import re
import shutil
import subprocess
import unicodedata
from collections import Counter

import pytest
from table_cases import PROCEDURAL, make_record

from dk_bench.report.readme import differences
from dk_bench.tables.documents import build_documents, write_documents
from dk_bench.tables.entries import Number
from dk_bench.tables.latex import escape
from dk_bench.tables.render import csv_text, latex, markdown
from dk_bench.tables.table import Document, Table

NAMES = (
    "a>b|c",
    "[a]",
    "*",
    "x--y,,z",
    "µ×± Δλ",
    "é ő ß",
    "测试",
    "Привет",
    "🦝",
    "'`\"",
    r"%&#_{}~^\$",
    "a\nb",
    "\x1b\ud800",
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a > b | c < d", r"a $>$ b $|$ c $<$ d"),
        ('"it\'s" `x`', r"\texttt{\char34}it\textquotesingle{}s\texttt{\char34} \textasciigrave{}x\textasciigrave{}"),
        ("[50 % & #1_{a}$ ~ ^ \\]", r"{}[50 \% \& \#1\_\{a\}\$ \textasciitilde{} \textasciicircum{} \textbackslash{}]"),
        ("3 × 2 µs ± 1 Δ λ Ω − °", r"3 $\times$ 2 $\mu$s $\pm$ 1 $\Delta$ $\lambda$ $\Omega$ $-$ $^\circ$"),
        ("--a---b", r"-{}-a-{}-{}-b"),
        (",,a", ",{},a"),
        (
            "– — “a” ‘b’ …",
            r"\textendash{} \textemdash{} \textquotedblleft{}a\textquotedblright{} "
            r"\textquoteleft{}b\textquoteright{} \ldots{}",
        ),
        ("[a]", "{}[a]"),
        ("*a[b]*", "{}*a[b]*"),
        ("é e\u0301 ñ ő ế Å", r"\'{e} \'{e} \~{n} \H{o} \'{\^{e}} \r{A}"),
        ("straße Œ ø ł", r"stra\ss{}e \OE{} \o{} \l{}"),
        ("a\nb\tc\xa0d", "a b c~d"),
        ("测试", r"\begin{CJK}{UTF8}{gbsn}\Unicode{109}{75}\Unicode{139}{213}\end{CJK}"),
        ("a語b", r"a\begin{CJK}{UTF8}{bsmi}\Unicode{138}{158}\end{CJK}b"),
        ("働", r"\begin{CJK}{UTF8}{min}\Unicode{80}{205}\end{CJK}"),
        ("한", r"\begin{CJK}{UTF8}{mj}\Unicode{213}{92}\end{CJK}"),
        ("Я", r"\begin{CJK}{UTF8}{gbsn}\Unicode{4}{47}\end{CJK}"),
        ("🦝\u202e\x00ą", r"\texttt{U+1F99D}\texttt{U+202E}\texttt{U+0000}\texttt{U+0105}"),
    ],
)
def test_text_for_latex(text, shown):
    assert escape(text) == shown


def test_no_two_characters_look_alike_in_latex():
    signs = [chr(code) for code in range(0x20, 0x3000) if not chr(code).isspace()]
    shown = {sign: escape(sign) for sign in signs if sign == unicodedata.normalize("NFC", sign)}
    assert all(text.isascii() for text in shown.values())
    times = Counter(shown.values())
    same = {sign for sign, text in shown.items() if times[text] > 1}
    assert same == {"µ", "μ"}  # the micro sign and the letter mu


def hostile() -> Document:
    rows = [[name, Number(1.0), name] for name in NAMES]
    table = Table("data [1]\n% 50", ("[model]", "Δ", "set"), rows)
    return Document("hostile", "Models of | ours", ["A note."], [table])


def test_document_is_ascii_and_says_what_it_needs():
    source = latex(hostile())
    assert source.isascii() and "\n\n% 50" not in source
    assert source.startswith(
        "% Models of $|$ ours\n% Needs \\usepackage{CJK} beside booktabs.\n% Needs \\usepackage{textcomp} beside"
    )
    rows = [line for line in source.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + len(NAMES) and all(len(re.findall(r"(?<!\\)&", row)) == 2 for row in rows)
    plain = latex(Document("p", "P", [], [Table("t", ("model",), [["resnet50dw_dk"]])]))
    assert "Needs" not in plain


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex here")
def test_pdflatex_takes_it(tmp_path):
    """What needs the package CJK is left out where its fonts may be missing."""
    names = [name for name in NAMES if "CJK" not in escape(name)]
    table = Table("data [1]", ("[model]", "Δ"), [[name, Number(1.0)] for name in names])
    body = latex(Document("hostile", "Models | of *", [], [table]))
    head = "\\documentclass{article}\n\\usepackage{booktabs,textcomp}\n\\begin{document}\n"
    (tmp_path / "t.tex").write_text(f"{head}{body}\\end{{document}}", encoding="ascii")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Missing character" not in (tmp_path / "t.log").read_text(errors="replace")


# Markdown and CSV


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a|b", r"a\|b"),
        ("<b>", r"\<b>"),
        ("*a*", r"\*a\*"),
        ("`a`", r"\`a\`"),
        ("&amp;", r"\&amp;"),
        ("a\nb\r\nc", "a b c"),
        ("_a_", r"\_a_"),
        ("__a__", r"\_\_a_\_"),
        ("~~a~~", r"\~\~a\~\~"),
        ("[a](b)", r"[a\](b)"),
        ("test_resnetdw_dk_s3 [a] *", r"test_resnetdw_dk_s3 [a] \*"),
        (r"a\|b", r"a\\\|b"),
        ("$a$", r"\$a\$"),
    ],
)
def test_names_are_no_markdown(name, shown):
    document = Document("t", name, [], [Table(name, (name, "n"), [[name, Number(1.0)]])])
    lines = markdown(document).splitlines()
    assert (lines[0], lines[2], lines[4]) == (f"# {shown}", f"## {shown}", f"| {shown} | n |")
    assert lines[6] == f"| {shown} | 1.0 |"


def test_csv_gives_names_back():
    names = [*NAMES[:-1], 'a,"b"', "a\r\nb", " a "]
    text = csv_text(Document("t", "", [], [Table("x,y", ("model",), [[name] for name in names])]))
    assert [row["model"] for row in csv.DictReader(io.StringIO(text, newline=""))] == names


def test_differences_name_data_whole():
    """A name with a bracket and a colon; the link stays one."""
    data = PROCEDURAL | {"name": "photos (v2): *small*"}
    records = [make_record("test_resnetdw", 60.0, data=data), make_record("test_resnetdw_dk", 61.0, data=data)]
    table = differences(build_documents(records).values(), "our results")
    assert r"| [photos (v2): \*small\*](our%20results/demo.md) | test_resnetdw |" in table


def test_half_a_surrogate_pair_stops_no_table(tmp_path):
    documents = build_documents([make_record("a\ud800b", 50.0)])
    write_documents(documents.values(), tmp_path)
    assert "| a\ufffdb |" in (tmp_path / "other.md").read_text(encoding="utf-8")
    assert r"a\texttt{U+D800}b" in (tmp_path / "other.tex").read_text(encoding="ascii")
