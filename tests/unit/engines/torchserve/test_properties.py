"""Properties files are read as Java reads them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marship.engines.torchserve import properties
from marship.errors import UsageError

# lone surrogates have no UTF-16 form; a key is never empty
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(TEXT.filter(bool), TEXT))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]
) -> None:
    """Any keys and values come back, whatever separators and line ends they hold."""
    path = tmp_path_factory.mktemp("properties") / "x.properties"
    properties.write(path, values)
    assert properties.read(path) == values


def test_the_forms_that_java_knows(tmp_path: Path) -> None:
    """The examples of java.util.Properties.load, and a value over several lines."""
    path = tmp_path / "x.properties"
    path.write_text(
        "Truth = Beauty\n Truth2:Beauty\nTruth3   :Beauty\n# comment\n! comment\n\n"
        "fruits   apple, banana, \\\n         cantaloupe\ncheeses\nescaped\\:key=\\u00e9\\t\\\\\n"
    )
    assert properties.read(path) == {
        "Truth": "Beauty",
        "Truth2": "Beauty",
        "Truth3": "Beauty",
        "fruits": "apple, banana, cantaloupe",
        "cheeses": "",
        "escaped:key": "é\t\\",
    }


def test_a_line_without_a_key_is_named(tmp_path: Path) -> None:
    """The error gives the file and the line's number."""
    path = tmp_path / "x.properties"
    path.write_text("a=1\n\n=2\n")
    with pytest.raises(UsageError, match=r"x\.properties line 3 must read name=value"):
        properties.read(path)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    """Bytes that are not UTF-8."""
    path = tmp_path / "x.properties"
    path.write_bytes(b"a=\xff\xfe")
    with pytest.raises(UsageError, match="it is not UTF-8 text"):
        properties.read(path)
