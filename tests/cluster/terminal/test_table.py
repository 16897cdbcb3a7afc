from maskfleet.cluster.terminal.table import lines


def test_nested_results_are_aligned():
    result = {
        "images": 7,
        "why": {"new": 5, "changed": 2},
        "expected_failures": {},
        "workers": [{"workers": 1, "cost": "0.10 EUR"}, {"workers": 16, "cost": "0.02 EUR"}],
        "run": {"run_id": "2026", "failed": 0, "errors": {"crash": 1}},
        "warnings": ["these masks look black", "and these too"],
        "exit_code": None,
    }
    assert list(lines(result)) == [
        "images             7",
        "why                5 new, 2 changed",
        "expected failures  none",
        "workers            workers      cost",
        "                         1  0.10 EUR",
        "                        16  0.02 EUR",
        "run                run id  2026",
        "                   failed  0",
        "                   errors  1 crash",
        "warnings           these masks look black",
        "                   and these too",
        "exit code          unknown",
    ]


def test_an_empty_result_has_no_lines():
    assert list(lines({})) == []
    assert list(lines({"warnings": []})) == ["warnings  none"]
