"""The command that compares every op with the dense one."""

import pytest
from machine import need

from jaxsparse import __main__ as program
from jaxsparse.bench import verify
from jaxsparse.core import kernel


def test_ops_that_agree_have_a_line_each_and_exit_with_0(capsys):
    need("cpu_kernels")
    assert program.main(["check", "--dtypes", "float32", "--only", "matmul 16x16"]) == 0
    _heading, line, last = capsys.readouterr().out.splitlines()
    assert line.startswith("matmul 16x16 float32")
    assert "agrees" in line
    assert all(role in line for role in ("forward", "input_grad", "weight_grad"))
    assert last == "1 of 1 ops compared, all agree"


def test_an_op_that_is_wrong_is_named_and_exits_with_1(capsys, monkeypatch):
    need("cpu_kernels")
    call = kernel.call

    def wrong(target, *args, **kwargs):
        result = call(target, *args, **kwargs)
        return result + 1 if "input_grad" in target else result

    monkeypatch.setattr(kernel, "call", wrong)
    assert program.main(["check", "--dtypes", "float32", "--only", "matmul unstructured"]) == 1
    out = capsys.readouterr().out
    assert "DIFFERS" in out
    assert "input_grad" in out
    assert "forward" not in out.split("DIFFERS")[1]
    assert "1 differ: matmul unstructured float32" in out


def test_without_kernels_nothing_passes(capsys, monkeypatch):
    line = verify.Line("matmul 16x16 float32", (), "they are switched off")
    monkeypatch.setattr(verify, "lines", lambda *_: iter([line]))
    assert program.main(["check"]) == 1
    assert "nothing to check. they are switched off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--dtypes", "int7"], "--dtypes takes"), (["--only", "no such op"], "--only takes a part")],
)
def test_what_the_command_does_not_know_is_a_sentence(arguments, words, capsys):
    assert program.main(["check", *arguments]) == 2
    assert words in capsys.readouterr().err
