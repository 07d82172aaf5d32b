"""What a trial writes, and that docs/results loses nothing."""

import pytest
from trials import contents, read, result_of, run_of

import data
from lab import arms, bench_arms, experiments, publish, tables, timing


@pytest.fixture(autouse=True)
def published(tmp_path, monkeypatch):
    """A docs/results of each test's own."""
    monkeypatch.setattr(tables, "PUBLISHED", tmp_path / "published")
    return tmp_path / "published"


def test_the_published_tables_can_be_made_anew_without_a_run(published, tmp_path):
    old = result_of({"mma": "--mask mma"}, {"preset": "tiny"}, mma=[run_of(80)])
    publish.write(published, "shapes", old)
    before = contents(published)
    for file in published.glob("*.md"):
        file.write_text("old")
    arms.main(["shapes", "--tables", "--publish", "--runs", str(tmp_path / "none")])
    after = contents(published)
    assert {**after, "shapes.json": 0} == {**before, "shapes.json": 0}
    assert read(published / "shapes.json")["arms"] == old["arms"]


def test_an_arm_whose_options_changed_is_replaced_as_a_whole():
    old = result_of({"dot": "--order both"}, {"preset": "tiny"}, dot=[run_of(1, s) for s in (0, 1)])
    new = result_of({"dot": experiments.ARMS["dot"]}, {"preset": "tiny"}, dot=[run_of(2, 1)])
    merged = publish.merge(old, new, ["dot"])
    assert merged["arms"]["dot"] == new["arms"]["dot"] and merged["options"] == new["options"]


def test_results_that_name_the_published_folder_need_publish(published, capsys):
    with pytest.raises(SystemExit):
        arms.arguments(["shapes", "--results", str(published)])
    assert "written by --publish alone" in capsys.readouterr().err
    assert arms.arguments(["shapes"]).results == tables.RESULTS.resolve() != published


@pytest.mark.parametrize("name", ["shapes", "sounds", "shapes-pairs", "easy_vqa"])
def test_the_claims_stand_beside_the_tables_of_the_worlds(published, name):
    runs = {"causal": [run_of(60, s) for s in (0, 1)], "mma": [run_of(80 + s, s) for s in (0, 1)]}
    publish.write(published, name, result_of({arm: "" for arm in runs}, {"preset": "tiny"}, **runs))
    file = published / f"{name}_claims.md"
    assert file.exists() == (name != "easy_vqa")
    if file.exists():
        assert "+20.5 points" in file.read_text() and "paired" in file.read_text()


def test_learning_rates_are_compared_on_validation(published):
    """The rate that is best on test is not the one that is chosen."""
    runs = {
        "mma@0.002": [run_of(95, 0, curve={"9": 0.9, "10": 0.7})],
        "mma@0.004": [run_of(60, s, curve={"9": 0.1, "10": 0.8 + s}) for s in (0, 1)],
    }
    options = {arm: "" for arm in runs}
    publish.write(published, "rates", result_of(options, {"preset": "tiny"}, **runs))
    text = (published / "rates.md").read_text()
    header = [cell.strip() for cell in text.splitlines()[0].split("|")[1:-1]]
    row = [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]]
    assert dict(zip(header, row)).items() >= {"validation": "70.0", "test": "95.0"}.items()
    assert "Chosen on validation, at the last look: mma@0.004 (80.0, seed 0)." in text
    assert publish.over_count(runs, "mma", on_validation=True) == [
        {0.002: 0.7, 0.004: 0.8},
        {0.004: 1.8},
    ]
    assert publish.over_count(runs, "mma", on_validation=False)[0] == {0.002: 0.95, 0.004: 0.6}


def test_readme_puts_the_published_tables_into_readme_and_docs(tmp_path, published, capsys):
    publish.write_text(published / "a+b.md", "| new |")
    (tmp_path / "docs").mkdir()
    text = "before\n<!-- a+b.md -->\n{}<!-- end -->\nafter\n"
    for file in (tmp_path / "README.md", tmp_path / "docs" / "results.md"):
        file.write_text(text.format("| old |\n"))
    publish.write_readme(tmp_path)
    for file in (tmp_path / "README.md", tmp_path / "docs" / "results.md"):
        assert file.read_text() == text.format("| new |\n")
    (tmp_path / "docs" / "more.md").write_text("<!-- none.md -->\n<!-- end -->")
    (published / "a+b.md").write_text("| newer |")
    with pytest.raises(data.DataError, match="none.md is missing"):
        publish.write_readme(tmp_path)
    assert (tmp_path / "README.md").read_text() == text.format("| new |\n")


def test_times_are_published_with_those_of_other_arms(published, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        bench_arms, "step_times", lambda a, extra: asked.append(list(a)) or dict.fromkeys(a, 50.0)
    )
    publish.write_json(published / "shapes.json", {"arms": {"mma": [{"step_at_80": 900}]}})
    old = {"where": timing.where("float32"), "torch": "2", "ms": {"causal": 100.0, "lora": 120.0}}
    publish.write_json(published / "time.json", old)
    call = ["time", "--only", "mma", "--results", str(tmp_path)]
    before = contents(published)
    arms.main(call)
    assert contents(published) == before and asked == [["causal", "mma"]]
    arms.main([*call, "--publish"])
    record = read(published / "time.json")
    assert record["of_causal"] == {"causal": 1.0, "mma": 1.0, "lora": 1.2}
    text = (published / "time.md").read_text()
    assert "| lora   |       120 |      1.20 |" in text
    assert "| mma    |        50 |      1.00 |           900 |              45 |" in text
    publish.write_json(published / "time.json", {**old, "where": "elsewhere"})
    with pytest.raises(SystemExit, match="publish all arms together"):
        arms.main([*call, "--publish"])


def test_the_step_of_the_weights_that_were_kept_has_a_column():
    kept = {**run_of(80), "kept": {"step": 3600, "val": 0.8}}
    header, _, row = tables.arms_table({"mma@2000": [kept, run_of(81, 1)]}).splitlines()
    column = [cell.strip() for cell in header.split("|")].index("best at step")
    assert row.split("|")[column].strip() == "3,600, -"
    assert "best at step" not in tables.arms_table({"mma": [run_of(80)]})


def test_other_settings_are_refused_before_the_first_run(published, tmp_path, monkeypatch):
    old = result_of({"mma@2000": "--mask mma"}, {"preset": "tiny"}, **{"mma@2000": [run_of(8)]})
    publish.write_json(published / "scenes.json", old)
    monkeypatch.setattr(arms, "make", None)
    with pytest.raises(SystemExit, match="do not belong into one table"):
        arms.main(["scenes", "--publish", "--runs", str(tmp_path / "runs")])
