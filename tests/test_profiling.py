"""A profile: stages that add up, and a trace that a viewer can open."""

import gzip
import json
import re

from .fake_study import translated


def test_stages_add_up_and_the_trace_has_the_evaluations(tmp_path, capsys):
    trace = tmp_path / "trace.json.gz"
    translated(tmp_path, lambda x, t: 0.5 * x, batch_size=1, trace=trace)
    printed = capsys.readouterr().out
    title = re.search(r"sdedit: 5 images in ([\d.]+) s on cpu", printed)
    assert title
    rows = re.findall(r"(?m)^ +(\S.*?) +([\d.]+) +([\d.]+)% *$", printed)
    assert {"target network", "encoder", "decoder", "waiting for results to be written"} <= {name for name, *_ in rows}
    assert abs(sum(float(seconds) for _, seconds, _ in rows) - float(title[1])) < 0.1
    assert abs(sum(float(share) for *_, share in rows) - 100) < 1
    assert str(trace) in printed.replace("\n", "")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "target network" and event.get("ph") == "X" for event in events) == 8
    assert "mul" in printed


def test_too_few_evaluations_for_a_trace(tmp_path, capsys):
    translated(tmp_path, lambda x, t: 0.5 * x, images=2, trace=tmp_path / "trace.json.gz")
    assert "no trace: it begins after 4 evaluations of networks and takes 8" in capsys.readouterr().out
    assert not (tmp_path / "trace.json.gz").exists()
