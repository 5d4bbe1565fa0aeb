"""FSDP2 settings: no key that accelerate would silently ignore."""

from __future__ import annotations

import pytest

from cptplan.errors import ConfigError
from cptplan.launch.fsdp import FSDP_KEYS, accelerate_config, check_fsdp_settings, fsdp_environment, fsdp_settings

FSDP1_ONLY = {
    "fsdp_sharding_strategy", "fsdp_backward_prefetch", "fsdp_forward_prefetch", "fsdp_use_orig_params",
    "fsdp_sync_module_states",
}  # fmt: skip


def test_known_keys_are_those_of_accelerate():
    launch = pytest.importorskip("accelerate.commands.launch")
    options = vars(launch.launch_command_parser().parse_args(["script.py"]))
    theirs = {name for name in options if name.startswith("fsdp_")}
    optional = {"fsdp_ignored_modules"}  # read from the file, though no option of the command line
    assert set(FSDP_KEYS) - optional == theirs - FSDP1_ONLY


def test_misspelt_key_is_refused():
    settings = fsdp_settings("LlamaDecoderLayer")
    settings["fsdp_reshard_after_foward"] = settings.pop("fsdp_reshard_after_forward")
    with pytest.raises(ConfigError, match="did you mean 'fsdp_reshard_after_forward'"):
        check_fsdp_settings(settings)
    with pytest.raises(ConfigError, match="did you mean"):
        fsdp_environment(settings)
    with pytest.raises(ConfigError, match="did you mean"):
        accelerate_config(num_processes=2, num_nodes=1, precision="bf16", settings=settings)


@pytest.mark.parametrize("version", [1, None, "2"])
def test_other_version_is_refused(version):
    with pytest.raises(ConfigError, match="fsdp_version must be 2"):
        check_fsdp_settings({**fsdp_settings(None), "fsdp_version": version})


def test_layer_class_is_left_out_when_unknown():
    assert "fsdp_transformer_layer_cls_to_wrap" not in fsdp_settings(None)
    assert fsdp_environment(fsdp_settings("GPT2Block"))["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "GPT2Block"


@pytest.mark.parametrize(("precision", "theirs"), [("bf16", "bf16"), ("fp32", "no")])
def test_precision_is_in_their_words(precision, theirs):
    config = accelerate_config(num_processes=1, num_nodes=1, precision=precision, settings=None)
    assert config["mixed_precision"] == theirs
