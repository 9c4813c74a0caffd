"""The code of docs/integrations.md runs as it stands there: Curator's pipeline on Ray, FiftyOne's dataset."""

from test_readme import folder, run_page  # noqa: F401


def test_the_code_of_the_page_runs_and_prints_what_it_says(folder, capsys):  # noqa: F811
    run_page("docs/integrations.md", folder)
    printed = capsys.readouterr().out.splitlines()
    assert "0" in printed and "['weapon_related_violence']" in printed
