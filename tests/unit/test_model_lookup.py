"""Models by size, path and hub id."""

from __future__ import annotations

import json

import pytest

from cptplan.errors import ConfigError, ModelError
from cptplan.price.model_lookup import find_shape, parse_size, shape_of_size

CONFIG = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
          "intermediate_size": 80, "vocab_size": 96}  # fmt: skip


@pytest.mark.parametrize("size", ["10M", "50M", "135M", "350M", "500M", "1B", "1.5B", "3B", "7B", "8b", "14B", "32B",
                                  "70B", "405B", "1T", "2T"])  # fmt: skip
def test_shape_of_a_size_has_that_many_parameters(size):
    shape = shape_of_size(size)
    assert shape.total_params == pytest.approx(parse_size(size), rel=1e-3)
    assert 0.9 < shape.intermediate / shape.hidden < 6
    assert shape.num_heads % shape.num_kv_heads == 0
    assert shape.num_heads * shape.head_dim == shape.hidden


def test_sizes_of_published_models_have_their_proportions():
    assert (shape_of_size("8B").hidden, shape_of_size("8B").num_layers) == (4096, 32)
    assert (shape_of_size("70B").hidden, shape_of_size("70B").num_layers) == (8192, 80)


def test_size_is_found_without_a_file():
    found = find_shape("1.5B")
    assert found.shape == shape_of_size("1.5B")
    assert "a size alone" in found.source


@pytest.mark.parametrize("size", ["0", "1", "9M", "3T", "x"])
def test_size_out_of_range_is_refused(size):
    with pytest.raises(ConfigError, match=r"model size must be in \[10M, 2T\]; got"):
        shape_of_size(size)


@pytest.mark.parametrize("file", ["", "config.json"])
def test_directory_and_its_config_are_read(tmp_path, file):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert find_shape(str(tmp_path / file)).shape.hidden == 32


def test_directory_wins_over_a_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "8B").mkdir()
    (tmp_path / "8B" / "config.json").write_text(json.dumps(CONFIG))
    assert find_shape("8B").shape.hidden == 32


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
@pytest.mark.parametrize("named", [True, False])
def test_hub_id_is_found_in_the_cache(tmp_path, monkeypatch, variable, named):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    below = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}[variable]
    repository = tmp_path / below / "models--org--name"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "config.json").write_text(json.dumps(CONFIG))
    if named:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
    assert find_shape("org/name").shape.hidden == 32


def test_hub_id_that_is_not_here_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"local cache; got org/name, which is not in") as caught:
        find_shape("org/name")
    assert "hf download org/name config.json" in caught.value.hint


@pytest.mark.parametrize("text", ["", "8 B", "nothing here", "a/b/c", "-8B"])
def test_what_is_no_model_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"model must be|config\.json"):
        find_shape(text)
