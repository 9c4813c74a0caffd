"""The benchmark of a scan, on a handful of pictures: that it runs, and sees what it is there to see."""

import json

import pytest

from benchmarks import scan as benchmark


def measured(capsys, *arguments):
    benchmark.main([*arguments])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_speed_is_the_ratio_of_a_scan_to_its_model_and_of_a_second_scan_to_the_first(capsys):
    found = measured(capsys, "speed", "--num", "20", "--rounds", "2", "--kind", "drawings")
    assert found["pictures"] == 20
    for name in ("ratio", "second"):
        assert 0 < found[name]["smallest"] <= found[name]["median"] <= found[name]["largest"]


def test_memory_has_a_curve(capsys, tmp_path):
    found = measured(capsys, "memory", "--num", "40", "--plot", str(tmp_path / "curve.png"))
    assert found["mib_largest"] >= found["mib_at_the_end"] > 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("loses", [False, True])
def test_kills_see_rows_that_differ(capsys, monkeypatch, loses):
    read_rows = benchmark.read_rows

    def lossy(path):
        for number, row in enumerate(read_rows(path)):
            if not (loses and path.name == "rows.jsonl" and number == 3):
                yield row

    monkeypatch.setattr(benchmark, "read_rows", lossy)
    found = measured(capsys, "kills", "--num", "40", "--kills", "3")
    assert found["rows"] == 40 and found["errors"] > 0 and found["groups"] > 0
    assert (found["rows_differ"] > 0) == loses
