"""Scores of tasks of one's own, against lm-eval's rules worked out by hand, and a model that stays as it was."""

import builtins
import json
import random

import numpy as np
import pytest

from cptplan.errors import ConfigError, DataError
from cptplan.mixture import ConstantMixture
from cptplan.run_options import Tasks
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet
from cptplan.schedule import CosineSchedule

pytest.importorskip("lm_eval")
torch = pytest.importorskip("torch")

from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from executor import tasks  # noqa: E402
from executor.tasks import check_tasks, evaluate_tasks, milestones  # noqa: E402

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
GENERATE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "w3"
generation_kwargs: {{max_gen_toks: 2, do_sample: true, temperature: 1.0, until: ["w9"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
PERPLEXITY = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is left in the user's cache of data sets, nor read from it; lm-eval does not look at the machine."""
    import datasets
    from lm_eval import evaluator

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(evaluator, "add_env_info", lambda _: None)  # seconds, for a part of its answer we do not read
    tasks._load.cache_clear()


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(16)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0")


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=16,
        max_position_embeddings=32,
        attention_dropout=0.5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).train()


def write_task(directory, name, template=CHOICE, rows=12):
    rng = np.random.default_rng(3)
    data = directory / f"{name}.jsonl"
    lines = [
        {
            "number": number,
            "question": f"w1 w{rng.integers(1, 9)}",
            "choices": ["w3", "w4"],
            "answer": int(rng.integers(2)),
        }
        for number in range(rows)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / f"{name}.yaml").write_text(template.format(name=name, data=data))
    return lines


def own(directory, *names, **changes):
    return Tasks(names=names, include_path=str(directory), **changes)


def expected_accuracy(model, tokenizer, lines):
    model.eval()
    right = 0
    for line in lines:
        logits = model(torch.tensor([tokenizer(line["question"])["input_ids"]])).logits[0, -1]
        right += int(logits[4] > logits[3]) == line["answer"]
    model.train()
    return right / len(lines)


def seed_all():
    random.seed(5)
    np.random.seed(6)  # noqa: NPY002 (the global one is what lm-eval seeds)
    torch.manual_seed(7)


def draw_all():
    return random.random(), np.random.random(), torch.rand(3).tolist()  # noqa: NPY002


def test_evaluate_tasks_scores_a_task_of_ones_own(tmp_path, model, tokenizer):
    lines = write_task(tmp_path, "own_choice")
    with torch.no_grad():
        expected = expected_accuracy(model, tokenizer, lines)
    assert 0 < expected < 1
    assert evaluate_tasks(model, tokenizer, own(tmp_path, "own_choice"), batch_size=4) == {"own_choice": expected}


def test_evaluate_tasks_with_limit_takes_the_first_examples(tmp_path, model, tokenizer):
    lines = write_task(tmp_path, "own_choice")
    with torch.no_grad():
        expected = expected_accuracy(model, tokenizer, lines[:5])
    found = evaluate_tasks(model, tokenizer, own(tmp_path, "own_choice", limit=5), batch_size=2)
    assert found == {"own_choice": expected}


def test_evaluate_tasks_twice_says_the_same_for_each_kind_of_task(tmp_path, model, tokenizer):
    write_task(tmp_path, "own_choice")
    write_task(tmp_path, "own_answers", GENERATE)
    write_task(tmp_path, "own_text", PERPLEXITY)
    settings = own(tmp_path, "own_text", "own_answers", "own_choice", num_fewshot=0)
    first = evaluate_tasks(model, tokenizer, settings, batch_size=4)
    assert list(first) == ["own_text", "own_answers", "own_choice"]
    assert first["own_text"] > 1  # a perplexity
    assert 0 <= first["own_answers"] <= 1
    assert evaluate_tasks(model, tokenizer, settings, batch_size=4) == first


def test_evaluate_tasks_changes_nothing_that_training_depends_on(tmp_path, model, tokenizer):
    write_task(tmp_path, "own_choice")
    write_task(tmp_path, "own_answers", GENERATE)
    model.model.norm.eval()  # a part that was in another mode
    modes = [module.training for module in model.modules()]
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    configs = model.config.to_dict(), model.generation_config.to_dict()
    seed_all()
    expected = draw_all()
    seed_all()
    evaluate_tasks(model, tokenizer, own(tmp_path, "own_choice", "own_answers"), batch_size=4)
    assert draw_all() == expected
    assert [module.training for module in model.modules()] == modes
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
    assert (model.config.to_dict(), model.generation_config.to_dict()) == configs
    assert tokenizer.pad_token is None


def test_evaluate_tasks_says_nothing(tmp_path, model, tokenizer, capfd, caplog):
    write_task(tmp_path, "own_choice")
    evaluate_tasks(model, tokenizer, own(tmp_path, "own_choice"), batch_size=4)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_evaluate_tasks_that_fails_puts_everything_back(tmp_path, model, tokenizer):
    write_task(tmp_path, "own_choice", CHOICE.replace("{{{{question}}}}", "{{{{ 1 / (number - 3) }}}}"))
    seed_all()
    expected = draw_all()
    seed_all()
    with pytest.raises(ConfigError, match="tasks must run; got ZeroDivisionError"):
        evaluate_tasks(model, tokenizer, own(tmp_path, "own_choice"), batch_size=4)
    assert draw_all() == expected
    assert model.training


def test_check_tasks_moves_no_random_number_generator(tmp_path, tokenizer):
    write_task(tmp_path, "own_choice")
    seed_all()
    expected = draw_all()
    seed_all()
    check_tasks(own(tmp_path, "own_choice"), tokenizer)
    assert draw_all() == expected


def test_check_tasks_without_tokenizer_is_refused(tmp_path):
    write_task(tmp_path, "own_choice")
    with pytest.raises(ConfigError, match="tokenizer must be given"):
        check_tasks(own(tmp_path, "own_choice"), None)


def test_check_tasks_without_lm_eval_names_the_extra(tmp_path, tokenizer, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("lm_eval"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="lm-eval must be installed") as caught:
        check_tasks(own(tmp_path, "own_choice"), tokenizer)
    assert "cptplan[eval]" in caught.value.hint


def test_check_tasks_not_known_names_the_closest(tmp_path, tokenizer, monkeypatch):
    write_task(tmp_path, "own_choice")
    real = tasks._index
    # lm-eval's own 14 683 names take 8 s to read
    monkeypatch.setattr(tasks, "_index", lambda include_path, *, defaults: real(include_path, defaults=False))
    with pytest.raises(ConfigError, match="known to lm-eval; got own_choise") as caught:
        check_tasks(own(tmp_path, "own_choise"), tokenizer)
    assert "own_choice" in caught.value.hint


def test_check_tasks_with_a_wrong_include_path_is_refused(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="include_path must be a directory"):
        check_tasks(own(tmp_path / "nowhere", "own_choice"), tokenizer)


def test_check_tasks_without_data_says_so(tmp_path, tokenizer):
    write_task(tmp_path, "own_choice")
    (tmp_path / "own_choice.jsonl").unlink()
    with pytest.raises(DataError, match="data of task own_choice must be reachable"):
        check_tasks(own(tmp_path, "own_choice"), tokenizer)


def test_check_tasks_with_a_broken_task_says_so(tmp_path, tokenizer):
    write_task(tmp_path, "own_choice", CHOICE.replace("multiple_choice", "guessing"))
    with pytest.raises(ConfigError, match="task own_choice must load"):
        check_tasks(own(tmp_path, "own_choice"), tokenizer)


def test_check_tasks_with_a_tag_names_its_tasks(tmp_path, tokenizer, monkeypatch):
    for name in ("one", "two"):
        write_task(tmp_path, name, CHOICE + "tag: both\n")
    real = tasks._index
    monkeypatch.setattr(tasks, "_index", lambda include_path, *, defaults: real(include_path, defaults=False))
    with pytest.raises(ConfigError, match="score of their own; got both") as caught:
        check_tasks(own(tmp_path, "both"), tokenizer)
    assert caught.value.hint == "name them: one, two"


@pytest.mark.parametrize(
    ("metrics", "score"),
    [
        ({"acc,none": 0.1, "acc_stderr,none": 0.5, "acc_norm,none": 0.2}, 0.2),
        ({"alias": "x", "sample_len": 3, "exact_match,strict-match": 0.3, "exact_match,flexible-extract": 0.4}, 0.3),
        ({"bits_per_byte,none": 1.0, "word_perplexity,none": 9.0}, 9.0),
        ({"rouge1,none": 5.0, "rouge2,none": 2.0}, 5.0),
        ({"acc,none": 1}, 1.0),
    ],
)
def test_score_is_the_main_metric_after_the_first_filter(metrics, score):
    assert tasks._score("name", metrics) == score


def test_score_without_a_number_is_refused():
    with pytest.raises(ConfigError, match="must have a number as score; got none of name"):
        tasks._score("name", {"alias": "x", "sample_len": 3, "acc_stderr,none": "N/A"})


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [(None, set()), (Tasks(names=("a",)), {0, 4, 10}), (Tasks(names=("a",), steps=(2, 10)), {2, 10})],
)
def test_milestones_are_those_told_or_start_kept_and_last(chosen, expected):
    spec = RunSpec(
        name="run",
        phase="cpt",
        model=ModelSource(path="base"),
        sources=(Source(name="law", role="domain", path="law"),),
        validation=(ValidationSet(name="law", path="law", num_tokens=64),),
        schedule=CosineSchedule(kind="cosine", peak_lr=1e-3, total_steps=10, warmup_steps=1, min_lr=1e-4),
        mixture=ConstantMixture(replay_ratio=0.0),
        seq_len=16,
        batch_tokens=64,
        keep_steps=(4,),
        tasks=chosen,
    )
    assert milestones(spec) == expected
