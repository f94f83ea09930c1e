"""Timing: which calls a time is made of."""

from jaxsparse.tune import timing


def test_warm_times_are_of_functions_that_are_called_by_themselves(monkeypatch):
    calls, of_each = [], {"dense": [8.0, 6.0, 7.0], "sparse": [2.0, 2.0, 9.0]}

    def interleaved(functions, seconds):
        calls.append((list(functions), seconds))
        return {name: of_each[name] for name in functions}

    monkeypatch.setattr(timing, "interleaved", interleaved)
    functions = {"dense": None, "sparse": None}
    assert timing.warm(functions, seconds=3.0) == {"dense": 7.0, "sparse": 2.0}
    assert calls == [(["dense"], 1.5), (["sparse"], 1.5)]
