"""Question -> prompt ids, through the model's own chat template.

Floor 3: the only room that writes a conversation. Knows a tokenizer and a `PromptSpec`; no model, no torch,
no data format. What comes out are ids up to and including the generation prompt: the next token is the
assistant's first.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from upft.errors import DataError, ModelError
from upft.prefix import first_words
from upft.specs import PromptSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedTokenizerBase

# Llama templates from 3.2 on write today's date where none is given: the same artifact would differ from
# day to day. Llama 3.1 writes this one by itself; a template that knows no date ignores it.
DATE = "26 Jul 2024"


class Prompter:
    """Writes the prompts of one model.

    Raises ModelError at once where the tokenizer cannot do it (no chat template, no EOS, a template that
    refuses the turns, BOS twice), not after the first thousand questions.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: PromptSpec) -> None:
        self._tokenizer, self._prompt = tokenizer, prompt
        self._name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        try:
            tokenizer.get_chat_template()
        except ValueError as error:
            raise ModelError(
                f"tokenizer {self._name} has no chat template",
                "use an instruct model, or save its tokenizer with tokenizer.chat_template set") from error
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"tokenizer {self._name} has no EOS token",
                "set eos_token in its tokenizer_config.json to the token that ends an assistant turn")
        self.eos_id: int = tokenizer.eos_token_id
        """The id that ends an assistant turn."""
        for key, text in (("model.system_prompt", prompt.system_prompt),
                          ("model.user_template", prompt.user_template)):
            found = _control_tokens(tokenizer).search(text or "")
            if found is not None:
                raise ModelError(f"{key} holds the control token {found.group()} of tokenizer {self._name}",
                                 "leave it out: the chat template writes the control tokens")
        probe = self._apply("What is 1 + 1?")  # a template that refuses the turns says so here
        self._check_bos(probe)
        self._control = _control_tokens(tokenizer, probe)

    def ids(self, question: str, suffix: str = "") -> list[int]:
        """Ids of the conversation that asks `question`, generation prompt included: [prompt].

        `suffix` stands in the user's turn, directly after the question. The text of both is put in as it is:
        braces and backslashes mean nothing. Raises DataError where it holds a control token, which would end
        the user's turn.
        """
        found = self._control.search(question + suffix)
        if found is not None:
            raise DataError(
                f"a question holds the control token {found.group()} of tokenizer {self._name}: "
                f"{question[:60]!r}",
                "remove or reword it in the data: the model would read it as the start or end of a turn")
        return self._apply(question + suffix)

    def text(self, ids: Sequence[int]) -> str:
        """Ids as text, control tokens shown and no space tidied away."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False,
                                      clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # a flat list of ids is one text, not a batch
        return text

    def words(self, ids: Sequence[int], count: int, stop_ids: Iterable[int]) -> list[int]:
        """The first `count` words of a completion, tokenised by themselves and cut to `count` ids: [at most count].

        Control tokens are left out, and none comes in where a completion spells one in letters. Empty for a
        completion without a word.
        """
        kept = list(ids)
        if kept and kept[-1] in set(stop_ids):
            kept.pop()  # decoding leaves special tokens out, but not every stop token is marked as one
        text = self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # a flat list of ids is one text, not a batch
        text = text.rstrip("\ufffd")  # a letter of several tokens, of which the last was not sampled
        return list(self._tokenizer(first_words(text, count), add_special_tokens=False,
                                    split_special_tokens=True)["input_ids"][:count])

    def _conversation(self, text: str) -> list[dict[str, str]]:
        turns = [{"role": "user", "content": self._prompt.user_template.replace("{question}", text)}]
        if self._prompt.system_prompt is not None:
            turns.insert(0, {"role": "system", "content": self._prompt.system_prompt})
        return turns

    def _apply(self, text: str) -> list[int]:
        """Render and tokenise. The tokenizer adds nothing of its own: the template alone writes BOS."""
        try:
            ids = self._tokenizer.apply_chat_template(
                self._conversation(text), tokenize=True, add_generation_prompt=True, return_dict=False,
                date_string=DATE)
        except TemplateError as error:
            raise ModelError(
                f"the chat template of tokenizer {self._name} refuses the conversation: {error}",
                "where it knows no system turn, set model.system_prompt=null and put the instruction into "
                "model.user_template") from error
        return list(ids)

    def _check_bos(self, ids: list[int]) -> None:
        """Raise ModelError where a prompt starts with two BOS.

        One question speaks for all, since a question that holds BOS is refused. BOS further on is no fault:
        that of SmolLM2 is `<|im_start|>`, which opens every turn.
        """
        bos_id = self._tokenizer.bos_token_id
        if bos_id is not None and ids[:2] == [bos_id, bos_id]:
            raise ModelError(
                f"tokenizer {self._name} writes BOS ({self._tokenizer.bos_token}) twice",
                "let either the chat template or the tokenizer write it: drop one of the two")


def _control_tokens(tokenizer: PreTrainedTokenizerBase, written: Iterable[int] = ()) -> re.Pattern[str]:
    """Matches special tokens, and of the other added tokens those in `written`: DeepSeek does not mark the
    tokens that open its turns as special."""
    ids = set(written)
    tokens = [str(token.content) for id_, token in tokenizer.added_tokens_decoder.items()
              if token.special or id_ in ids]
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) if tokens else r"(?!)")  # (?!) matches nothing
