"""What the documents name exists."""

import functools
import importlib
import pathlib
import re

import pytest

import jaxsparse
import jaxsparse.io
import jaxsparse.nnx

DOCS = pathlib.Path(__file__).parents[1] / "docs"
NAMES = {"js": jaxsparse, "jsnnx": jaxsparse.nnx, "jaxsparse.io": jaxsparse.io}


def _named() -> list[str]:
    text = (DOCS / "features.md").read_text()
    return sorted(set(re.findall(r"`((?:jsnnx|js|jaxsparse\.io)\.[\w.]+)`", text)))


@pytest.mark.parametrize("name", _named())
def test_every_function_in_the_table_of_features_exists(name):
    module = next(known for known in sorted(NAMES, key=len) if name.startswith(f"{known}."))
    path = name.removeprefix(f"{module}.").split(".")
    assert functools.reduce(getattr, path, NAMES[module]) is not None


def test_the_table_of_features_names_many():
    assert len(_named()) > 40
    assert importlib.import_module("jaxsparse.linen").Conv  # the sentence at its start
