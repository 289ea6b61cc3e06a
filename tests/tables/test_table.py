"""Tables from columns and rows: what is judged, what is left out, and what stands below."""

from dataclasses import dataclass
from operator import attrgetter

from dk_bench.tables.contrasts import Judgement, decide, judge
from dk_bench.tables.entries import Chance, Figure, Number, Right, Value
from dk_bench.tables.table import CHANCE, VERDICT, Column, make_table, merged


@dataclass
class Run:
    name: str
    size: int
    label: str = ""
    above: Judgement | Value = ""
    below: Judgement | Value = ""


NAME, SIZE = Column("model", attrgetter("name")), Column("size", lambda run: Number(run.size, 0))


def test_a_column_is_left_out_where_it_says_nothing():
    label = Column("setting", attrgetter("label"), when=any)
    columns = [NAME, SIZE, label, Column("never", attrgetter("label"), when=False)]
    assert make_table("t", columns, [Run("a", 0), Run("b", 2)]).columns == ("model", "size")
    table = make_table("t", columns, [Run("a", 0), Run("b", 2, "lr=1")], "A note.")
    assert table.columns == ("model", "size", "setting")
    assert table.rows == [["a", Number(0, 0), ""], ["b", Number(2, 0), "lr=1"]]
    assert (table.note, table.notes, table.names) == ("A note.", (), (0, 2))
    assert make_table("t", columns, []).rows == []


def test_names_stand_left_and_figures_right():
    shown = [Column("own", lambda run: Right(f"{run.size} of 3")), Column("some", lambda run: run.label or Number(1))]
    assert make_table("t", [NAME, *shown], [Run("a", 1, "unknown"), Run("b", 2)]).names == (0,)


def test_all_judgements_of_a_family_are_corrected_together():
    judged = [judge([1.0, 1.2, 1.1]), judge([0.3, -0.2, 0.4]), judge([])]
    rows = [Run("base", 1), Run("a", 1, "", judged[0], judged[1]), Run("b", 2, "", judged[2])]
    of = Column("Δ rigid", attrgetter("above"), "difference", notes=("Above.",), short="Δ")
    columns = [NAME, of, Column("Δ DK", attrgetter("below"), "difference", notes=("Below.", "Above."))]
    table = make_table("t", columns, rows, "Of tests.")
    verdicts = decide(judged)
    behind = ["Δ rigid", "Δ rigid, p (Holm)", "Δ rigid, verdict", "Δ DK", "Δ DK, p (Holm)", "Δ DK, verdict"]
    assert table.columns == ("model", *behind)
    assert table.note == "Of tests. Family: 3 differences (2 Δ rigid, 1 Δ DK), 2 of them run."
    assert table.notes == ("Above.", "Below.", CHANCE, VERDICT)
    assert table.rows[1][2:4] == [Chance(verdicts[0].p), str(verdicts[0])] and table.rows[1][5].value == verdicts[1].p
    assert table.rows[0][1:4] == ["", Chance(None), ""] and table.rows[2][3] == "not run"
    assert isinstance(table.rows[1][1], Figure) and str(table.rows[1][1]).startswith("+1.1 ± ")
    assert table.short == ("", "Δ", "p (Holm)", "verdict", "", "", "")
    apart = make_table("t", [of, Column("other", attrgetter("below"), "contrast")], rows)
    assert (
        apart.note == "Family: 2 differences (2 Δ rigid), 1 of them run. Family: 1 contrast (1 other), 1 of them run."
    )
    assert apart.rows[1][1] == Chance(decide([judged[0], judged[2]])[0].p)


def test_a_difference_that_is_not_judged_stands_alone():
    table = make_table("t", [Column("Δ", attrgetter("above"))], [Run("a", 1, "", judge([1.0, 2.0])), Run("b", 1)])
    assert (
        table.columns == ("Δ",)
        and str(table.rows[0][0]) == "+1.5 ± 6.4 (n=2)"
        and (table.note, table.notes) == ("", ())
    )


def test_rules_stand_between_sections():
    rows = [Run("a", 1), Run("b", 1), Run("c", 2), Run("d", 3)]
    assert make_table("t", [NAME], rows, section=attrgetter("size")).rules == (2, 3)
    assert make_table("t", [NAME], rows).rules == ()


def test_notes_stand_once():
    assert merged([("a", "b"), (), ("b", "c")]) == ("a", "b", "c")
