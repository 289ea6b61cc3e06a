"""What is made of the claims: the command, the picture, the report, and which plan their experiments had."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from claims_cases import CLAIMS, runs_of

from dk_bench.claims.document import claims_summary
from dk_bench.claims.findings import families
from dk_bench.claims.plan import keep_plan, kept_plan, plan_commits
from dk_bench.cli import main
from dk_bench.errors import UserError
from dk_bench.report.forest import forest, forest_file
from dk_bench.report.readme import CLAIMS_BEGIN, CLAIMS_END
from dk_bench.runs.record import write_record

# The command


@pytest.fixture
def results(tmp_path):
    figures = {"rigid": [80.0, 81.0, 79.0, 80.5], "s4": [82.0, 82.9, 81.2, 82.5], "dcn": [84.0, 84.9, 83.0, 84.6]}
    for record in runs_of(figures):
        write_record(record, tmp_path / "results" / "photos" / record.run_id / "record.json")
    return tmp_path / "results"


def test_command(results, tmp_path, monkeypatch, capsys):
    assert main(["claims", str(results)]) == 0
    assert "supported" in capsys.readouterr().out
    text, picture = (results / "claims.md").read_text(), (results / "claims.svg").read_text()
    row = r"^\| Local deformable kernels classify .* s4 - rigid \| centred .*\+2\.0.*$"
    (local,) = re.findall(row, text, re.MULTILINE)
    assert [cell.strip() for cell in local.split("|")][4:7] == ["+1.8", "+2.0 ± 0.2 (n=4)", "0.90"]
    assert local.endswith("| supported |")
    assert (
        "cifar10 (10 classes, 45,000 training and 5,000 validation images), 10,000 test images, 32 pixels, 2 epochs\n"
        in text
    )
    assert "Records: [photos](photos)." in text and "Seed 3 lacks s3, s4_spread, s5, global, dcn_dk" in text
    assert "s4 - rigid: +2.0 ± 0.2 (n=4), paper +1.8: supported" in picture and "prefers-color-scheme: dark" in picture
    monkeypatch.chdir(results)  # twice, and from elsewhere: the same bytes
    assert main(["claims", "."]) == 0
    assert ((results / "claims.md").read_text(), (results / "claims.svg").read_text()) == (text, picture)
    out = tmp_path / "out" / "mine.md"
    assert main(["claims", str(results), "--output", str(out)]) == 0
    assert "[../results/photos](../results/photos)" in out.read_text()
    assert out.with_suffix(".svg").read_text() == picture


def test_command_puts_the_verdicts_into_a_readme(results, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{CLAIMS_BEGIN}\nold\n{CLAIMS_END}\nafter\n")
    assert main(["claims", str(results), "--readme", str(readme)]) == 0
    name = "[E2, photographs: CIFAR-10, ResNet-50-DW](results/claims.md)"
    assert (
        readme.read_text()
        == f"""before
{CLAIMS_BEGIN}

![Differences of the paper and ours, with intervals](results/claims.svg)

| tested on | n | supported | contradicted | equivalent | undecided |
| :-- | :-- | :-- | :-- | :-- | :-- |
| {name} | 4 of 8, interim | local-over-rigid | local-over-dcn |  |  |

{CLAIMS_END}
after
"""
    )
    small = runs_of({"rigid": [80.0, 81.0, 79.0, 80.5], "s4": [80.3, 81.32, 79.31, 80.81]})
    summary = claims_summary(families(CLAIMS, small, Path("none")), "claims")
    assert "| 4 of 8, interim | local-over-rigid (within the margin) |  |  |  |" in summary
    readme.write_text("nothing")
    assert main(["claims", str(results), "--readme", str(readme)]) == 2
    assert "README.md: expected the line <!-- claims, by `make tables` -->" in capsys.readouterr().err


def test_command_without_records_and_with_a_bad_folder(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["claims", str(tmp_path / "empty")]) == 0
    assert "no records yet" in (tmp_path / "empty" / "claims.md").read_text()
    assert "No claim has a figure yet" in (tmp_path / "empty" / "claims.svg").read_text()
    assert main(["claims", str(tmp_path / "nowhere")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert main(["claims", str(tmp_path / "empty"), "--claims", str(tmp_path / "none.yaml")]) == 2
    assert "no claims can be read there" in capsys.readouterr().err


def test_forest_has_a_mark_a_contrast():
    assert forest(families(CLAIMS, [], Path("none"))) is None
    found = families(CLAIMS, runs_of({"rigid": [80.0], "s4": [81.0]}), Path("none"))
    assert "(n=1)" in forest(found).svg and forest_file(found) == forest_file(found)


def test_forest_stands_where_the_figures_are():
    """Marks, bars and the paper's hollow marks, on the scale that the ticks give."""
    found = families(CLAIMS, runs_of({"rigid": [80.0, 81.0, 79.0], "s4": [81.0, 82.4, 79.6]}), Path("none"))
    svg = str(forest(found).svg)
    ticks = re.findall(r'<text [^>]*x="([\d.]+)"[^>]*>(\u2212?[\d.]+)</text>', svg)
    (x0, at0), *_, (x1, at1) = [(float(x), float(value.replace("\u2212", "-"))) for x, value in ticks]
    points = lambda x: at0 + (float(x) - x0) * (at1 - at0) / (x1 - x0)  # noqa: E731
    parts = re.findall(r"<title>s4 - rigid: \+1\.0 ± 1\.0 \(n=3\), paper \+1\.8: undecided.*?</g>", svg, re.DOTALL)
    (bar,) = [found for part in parts for found in re.findall(r'd="M ([\d.]+) [\d.]+ +L ([\d.]+) ', part)]
    (mark,) = [found for part in parts for found in re.findall(r'<use [^>]*x="([\d.]+)"', part)]
    papers = svg.partition("<title>")[0]
    assert points(mark) == pytest.approx(1.0, abs=1e-3)
    # Differences of 1, 1.4 and 0.6: deviation 0.4, half of the interval 4.3027 * 0.4 / sqrt(3).
    assert list(map(points, bar)) == pytest.approx([1 - 0.9937, 1 + 0.9937], abs=1e-3)
    assert points(re.findall(r'<use [^>]*x="([\d.]+)"[^>]*fill-opacity: 0', papers)[-1]) == pytest.approx(1.8, abs=1e-3)


# The plan


@pytest.fixture
def checkout(tmp_path):
    """A repository whose plan was committed on the 1st and the 3rd of January 2026, at noon."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    commits = []
    for day in (1, 3):
        (folder / "plan.md").write_text(f"day {day}\n")
        date = {f"GIT_{who}_DATE": f"2026-01-0{day}T12:00:00+00:00" for who in ("AUTHOR", "COMMITTER")}
        name = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        for words in (["init", "-q"], ["add", "."], [*name, "commit", "-q", "-m", "plan"]):
            subprocess.run(["git", *words], cwd=folder, check=True, env=os.environ | date)
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
        commits.append(head.stdout.strip())
    return folder, commits


def begun(start, commit=None):
    records = runs_of({"rigid": [80.0], "s4": [81.0]})
    for record in records:
        record.started, record.git = start, {"commit": commit, "dirty": False}
    return families(CLAIMS, records, Path("none"))


def test_plan_is_the_one_before_the_first_run(checkout, tmp_path):
    folder, (first, second) = checkout
    plan = folder / "plan.md"
    assert plan_commits(begun("2026-01-02T00:00:00+00:00"), plan) == {"photographs": first}
    assert plan_commits(begun("2026-01-04T00:00:00+00:00"), plan) == {"photographs": second}
    # What the run's own code had counts, also where the plan was changed elsewhere meanwhile.
    assert plan_commits(begun("2026-01-04T00:00:00+00:00", first), plan) == {"photographs": first}
    assert plan_commits(begun("2026-01-04T00:00:00+00:00", "0" * 40), plan) == {"photographs": second}
    assert plan_commits(families(CLAIMS, [], Path("none")), plan) == {}
    with pytest.raises(UserError, match="no commit of it is older than the first run of photographs"):
        plan_commits(begun("2025-12-31T00:00:00+00:00"), plan)
    (tmp_path / "elsewhere.md").write_text("")
    with pytest.raises(UserError, match="in no git checkout with its whole history"):
        plan_commits(begun("2026-01-04T00:00:00+00:00"), tmp_path / "elsewhere.md")


def test_plan_is_kept_for_where_no_git_is(tmp_path):
    assert kept_plan(tmp_path) == ("docs/experiments.md", {})
    keep_plan(tmp_path, Path("docs/plan.md"), {"photographs": "abc"})
    assert kept_plan(tmp_path) == ("docs/plan.md", {"photographs": "abc"})
    (tmp_path / "plan.json").write_text("[]")
    with pytest.raises(UserError, match=r"plan\.json: expected the plan and its commits"):
        kept_plan(tmp_path)


def test_command_notes_the_plan(results, checkout):
    folder, (_, second) = checkout
    for path in results.rglob("record.json"):
        path.write_text(path.read_text().replace('"started": "2026-01-01', '"started": "2026-01-05'))
    assert main(["claims", str(results), "--plan", str(folder / "plan.md")]) == 0
    text = (results / "claims.md").read_text()
    assert f"E2, photographs: CIFAR-10: {second[:12]}." in text
    assert main(["claims", str(results)]) == 0 and (results / "claims.md").read_text() == text


def test_report_shows_the_claims(results):
    assert main(["claims", str(results)]) == 0 and main(["report", str(results)]) == 0
    page = (results / "report.html").read_text()
    assert "s4 - rigid: +2.0 ± 0.2 (n=4), paper +1.8: supported" in page and 'href="#claims"' in page
    assert "Local deformable kernels classify better than rigid ones." in page and "docs/experiments.md" not in page
    assert "claims.svg" not in page
