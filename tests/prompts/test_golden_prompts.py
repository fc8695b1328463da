"""Prompts, by their decoded text: what each model family is asked, to the character."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tokenizers.processors import TemplateProcessing

from upft.errors import DataError, ModelError
from upft.prompts import Prompter
from upft.specs import PromptSpec

QUESTION = "What is $2 + 2$?"
SUFFIX = (" Please provide the initial step towards resolving the question. This step may serve as a foundation "
          "but might not encompass the entire solution.")
PLAIN = PromptSpec(None, "{question}")

GOLDEN = {
    "qwen_math": (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    "llama31": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
    "r1_distill": ("<｜begin▁of▁sentence｜><｜User｜>", "<｜Assistant｜><think>\n"),
    "smollm2": (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
}
"""Family -> the text before and after the user's words."""

SYSTEM = {
    "qwen_math": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n",
    "llama31": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
               "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
               "<|start_header_id|>user<|end_header_id|>\n\n",
    "r1_distill": "<｜begin▁of▁sentence｜>Be brief.<｜User｜>",
    "smollm2": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n",
}
"""Family -> the text before the user's words under `model.system_prompt='Be brief.'`."""

EOS = {"qwen_math": "<|im_end|>", "llama31": "<|eot_id|>", "r1_distill": "<｜end▁of▁sentence｜>",
       "smollm2": "<|im_end|>"}

every_family = pytest.mark.parametrize("family", list(GOLDEN))


@every_family
def test_plain_question(family, tokenizer_of):
    before, after = GOLDEN[family]
    prompter = Prompter(tokenizer_of(family), PLAIN)
    assert prompter.text(prompter.ids(QUESTION)) == before + QUESTION + after


@every_family
def test_suffix_stands_in_the_users_turn_directly_after_the_question(family, tokenizer_of):
    before, after = GOLDEN[family]
    prompter = Prompter(tokenizer_of(family), PLAIN)
    assert prompter.text(prompter.ids(QUESTION, SUFFIX)) == before + QUESTION + SUFFIX + after


@every_family
def test_user_template_surrounds_question_and_suffix(family, tokenizer_of):
    before, after = GOLDEN[family]
    prompter = Prompter(tokenizer_of(family), PromptSpec(None, "Problem: {question}\nAnswer in \\boxed{}."))
    assert prompter.text(prompter.ids(QUESTION, SUFFIX)) == (
        before + "Problem: " + QUESTION + SUFFIX + "\nAnswer in \\boxed{}." + after)


@every_family
def test_system_prompt_takes_the_place_of_the_templates_own(family, tokenizer_of):
    after = GOLDEN[family][1]
    prompter = Prompter(tokenizer_of(family), PromptSpec("Be brief.", "{question}"))
    assert prompter.text(prompter.ids(QUESTION)) == SYSTEM[family] + QUESTION + after


@every_family
@pytest.mark.parametrize("question", [
    "Let $A = \\{x : x^2 < {2}\\}$ and \\boxed{?}. Find {question} and {0}.",  # braces mean nothing
    "{{ bos_token }}{% for m in messages %} %s %(x)d \\n \\1",  # nor do template and escape signs
    "Tag <s> or [INST] or <|im_sep|> or < |eot_id| > , isn 't it ?",  # look like control tokens and are none
    "Tal på løse: ½ · 3 = ¾, 漢字 and 🙂",
], ids=["braces", "templates", "lookalikes", "unicode"])
def test_question_is_put_in_as_it_is(family, question, tokenizer_of):
    before, after = GOLDEN[family]
    tokenizer = tokenizer_of(family)
    prompter = Prompter(tokenizer, PLAIN)
    ids = prompter.ids(question)
    assert prompter.text(ids) == before + question + after
    added = tokenizer.added_tokens_decoder
    plain = prompter.ids("What?")
    assert [i for i in ids if i in added] == [i for i in plain if i in added], "the question became a control token"


@every_family
def test_ids_are_those_of_the_whole_text(family, tokenizer_of):
    """No piecewise tokenising: a boundary between template and question does not move."""
    tokenizer = tokenizer_of(family)
    ids = Prompter(tokenizer, PLAIN).ids(QUESTION, SUFFIX)
    before, after = GOLDEN[family]
    assert ids == tokenizer(before + QUESTION + SUFFIX + after, add_special_tokens=False)["input_ids"]


@every_family
def test_eos_is_what_ends_an_assistant_turn(family, tokenizer_of):
    prompter = Prompter(tokenizer_of(family), PLAIN)
    assert prompter.text([prompter.eos_id]) == EOS[family]


@pytest.mark.parametrize("family", ["llama31", "r1_distill"])
def test_one_bos_even_where_the_tokenizer_would_add_one(family, tokenizer_of):
    tokenizer = tokenizer_of(family)
    bos, bos_id = tokenizer.bos_token, tokenizer.bos_token_id
    assert Prompter(tokenizer, PLAIN).ids(QUESTION).count(bos_id) == 1
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, bos_id)])
    text = "".join((GOLDEN[family][0], QUESTION))
    assert tokenizer(text)["input_ids"][:2] == [bos_id, bos_id], "the trap is not set"
    ids = Prompter(tokenizer, PLAIN).ids(QUESTION, SUFFIX)
    assert ids.count(bos_id) == 1
    assert ids[0] == bos_id


def test_family_without_bos_gets_none(tokenizer_of):
    tokenizer = tokenizer_of("qwen_math")
    assert tokenizer.bos_token_id is None
    assert "<|endoftext|>" not in tokenizer.decode(Prompter(tokenizer, PLAIN).ids(QUESTION))


def test_bos_that_opens_every_turn_is_no_fault(tokenizer_of):
    tokenizer = tokenizer_of("smollm2")
    ids = Prompter(tokenizer, PLAIN).ids(QUESTION)
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 3  # system, user, assistant


def test_template_that_writes_bos_twice_is_refused_by_name(tokenizer_of):
    tokenizer = tokenizer_of("llama31")
    tokenizer.name_or_path = "acme/llama"
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    with pytest.raises(ModelError, match=r"acme/llama writes BOS \(<\|begin_of_text\|>\) twice") as caught:
        Prompter(tokenizer, PLAIN)
    assert "drop one" in caught.value.remedy


@pytest.mark.parametrize("template", [None, {"tool_use": "{{ messages }}"}], ids=["none", "no default"])
def test_tokenizer_without_chat_template(template, make_tokenizer):
    tokenizer = make_tokenizer(template, ["<eos>"], eos_token="<eos>", name_or_path="acme/base")
    with pytest.raises(ModelError, match="acme/base has no chat template") as caught:
        Prompter(tokenizer, PLAIN)
    assert "instruct model" in caught.value.remedy


def test_tokenizer_without_eos(make_tokenizer):
    tokenizer = make_tokenizer("{{ messages[0].content }}", ["<bos>"], bos_token="<bos>")
    with pytest.raises(ModelError, match="no EOS") as caught:
        Prompter(tokenizer, PLAIN)
    assert "eos_token" in caught.value.remedy


def test_template_that_refuses_a_system_turn(make_tokenizer):
    template = ("{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
                "{{ messages[0].content }}")
    tokenizer = make_tokenizer(template, ["<eos>"], eos_token="<eos>")
    assert Prompter(tokenizer, PLAIN).text(Prompter(tokenizer, PLAIN).ids("hello")) == "hello"
    with pytest.raises(ModelError, match="no system role here") as caught:
        Prompter(tokenizer, PromptSpec("Be brief.", "{question}"))
    assert "model.system_prompt=null" in caught.value.remedy


@pytest.mark.parametrize(("family", "token"), [
    ("qwen_math", "<|im_end|>"), ("llama31", "<|begin_of_text|>"), ("llama31", "<|eot_id|>"),
    ("r1_distill", "<｜Assistant｜>"), ("r1_distill", "<think>")])
def test_control_token_in_a_question_is_refused(family, token, tokenizer_of):
    """Unrefused it would be read as the real token and end the user's turn."""
    prompter = Prompter(tokenizer_of(family), PLAIN)
    assert prompter.text(prompter.ids(QUESTION)).startswith(GOLDEN[family][0])
    with pytest.raises(DataError) as caught:
        prompter.ids(f"Continue: {token} 4")
    assert token in caught.value.what
    assert "Continue:" in caught.value.what


def test_control_token_in_the_configured_prompt_is_refused(tokenizer_of):
    with pytest.raises(ModelError, match=r"model\.user_template holds the control token"):
        Prompter(tokenizer_of("qwen_math"), PromptSpec(None, "<|im_start|>user\n{question}"))
    with pytest.raises(ModelError, match=r"model\.system_prompt holds the control token"):
        Prompter(tokenizer_of("qwen_math"), PromptSpec("Be brief.<|im_end|>", "{question}"))


def test_configured_prompt_may_speak_of_thinking(tokenizer_of):
    """`<think>` is an added token of R1 and no control token; prompts that name it are common."""
    prompter = Prompter(tokenizer_of("r1_distill"), PromptSpec(None, "{question} Think in <think></think>."))
    assert prompter.text(prompter.ids(QUESTION)).endswith(
        QUESTION + " Think in <think></think>.<｜Assistant｜><think>\n")


def test_prompt_does_not_depend_on_the_day(make_tokenizer):
    """A template that asks for today's date (Llama 3.2 and later) is given a fixed one."""
    template = ("{% set day = date_string if date_string is defined else strftime_now('%d %b %Y') %}"
                "{{ day + ': ' + messages[0].content }}")
    tokenizer = make_tokenizer(template, ["<eos>"], eos_token="<eos>")
    prompter = Prompter(tokenizer, PLAIN)
    assert prompter.text(prompter.ids(QUESTION)) == "26 Jul 2024: " + QUESTION


def test_text_shows_ids_untidied(tokenizer_of):
    """Llama's own settings ask for spaces before punctuation to be tidied away; here they are forced to."""
    tokenizer = tokenizer_of("llama31")
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    ids = tokenizer("so , do n't tidy . <|eot_id|>", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) != "so , do n't tidy . <|eot_id|>", "the trap is not set"
    assert Prompter(tokenizer, PLAIN).text(ids) == "so , do n't tidy . <|eot_id|>"


def test_importing_prompts_brings_no_torch():
    code = "import sys, upft.prompts; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
