"""What is compared starts from the same draw: a training from weights differs by the weights alone, and each says which it is."""

from pathlib import Path

import pytest

from benchmarks.quality import from_weights
from meca.params import with_settings


def test_a_training_from_weights_says_so_and_is_as_good_at_once_as_what_it_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECA_THREADS", "1")
    params, place = from_weights.stored(tmp_path, "digits", 0, 400)
    assert from_weights.stored(tmp_path, "digits", 0, 400)[1] == place, "a second call takes what is there"
    params = with_settings(params, {"network.width": 4})
    first = from_weights.trained(params, place, 12, None, tmp_path / "weights")
    again = from_weights.trained(params, place, 1, None)
    further = from_weights.trained(params, place, 1, tmp_path / "weights" / "model.safetensors")
    assert (first["from_weights"], further["from_weights"], first["n"]) == (False, True, 400)
    assert isinstance(further["acc"], float) and isinstance(again["acc"], float) and further["acc"] > again["acc"] + 0.2


def test_a_wrong_call_says_what_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ([], ["--help"], ["a", "b"]):
        monkeypatch.setattr("sys.argv", ["from_weights", *arguments])
        with pytest.raises(SystemExit, match="where FOLDER takes the stores and the weights"):
            from_weights.main()
