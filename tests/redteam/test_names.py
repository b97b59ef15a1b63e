"""Classes by name or index: one meaning, or a sentence."""

import pytest

from meca.errors import UsageError
from meca.redteam.names import index_of

SIGNS = ("give_way", "speed_30", "stop_sign", "Émeu")


@pytest.mark.parametrize(
    ("text", "index"),
    [("stop_sign", 2), ("2", 2), ("name:stop_sign", 2), ("index:2", 2), ("E\u0301meu", 3), ("7", 7), ("-1", -1)],
)
def test_a_class_is_found_by_its_name_and_by_its_index(text: str, index: int) -> None:
    assert index_of(text, SIGNS, "target_class") == index


@pytest.mark.parametrize(
    ("text", "said"), [("stop_sgn", "did you mean 'stop_sign'"), ("EMEU", "'Émeu'"), ("xyz", "the classes are give_way, speed_30"), ("name:2", "got")]
)
def test_an_unknown_class_is_refused_with_its_neighbours(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=rf"Expected poison\.target_class to be a class of this data .*{said}"):
        index_of(text, SIGNS, "target_class")


def test_a_number_that_is_one_class_by_name_and_another_by_index_is_asked_about() -> None:
    names = ("0", "1", "10", "2")  # as folders are sorted
    with pytest.raises(UsageError, match=r"'2' is the name of class 3 and the index of class '10'; say name:2 or index:2"):
        index_of("2", names, "source_class")
    assert (index_of("name:2", names, "target_class"), index_of("index:2", names, "target_class")) == (3, 2)
    assert (index_of("1", names, "target_class"), index_of("10", names, "target_class"), index_of("00014", ("00014", "00017"), "target_class")) == (
        1,
        2,
        0,
    )
