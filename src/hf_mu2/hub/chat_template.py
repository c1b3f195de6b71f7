"""Chat templates for mu2: the language model's own format, with volumes as content and the answer marked for training.

A template of a language model knows text only, and its form varies with the position of a turn or the date. So its
pieces (what opens and closes each turn) are read off rendered conversations and put into one plain template, in which
a prompt is always a prefix of the conversation that continues it.
"""

import json

from transformers import PreTrainedTokenizerBase

_PLACEHOLDERS = ("SYSTEMTEXT", "QUESTIONONE", "ANSWERONE", "QUESTIONTWO", "ANSWERTWO")

_TEMPLATE = """\
{{%- macro write(content) -%}}
    {{%- if content is string -%}}
        {{{{- content -}}}}
    {{%- else -%}}
        {{%- for part in content -%}}
            {{{{- {image_token} if part['type'] == 'image' else part['text'] -}}}}
        {{%- endfor -%}}
    {{%- endif -%}}
{{%- endmacro -%}}
{{{{- {start} -}}}}
{{%- if messages[0]['role'] != 'system' -%}}{{{{- {default_system} -}}}}{{%- endif -%}}
{{%- for message in messages -%}}
    {{%- if message['role'] == 'assistant' -%}}
        {{{{- {assistant_open} -}}}}
        {{%- generation -%}}{{{{- write(message['content']) + {assistant_close} -}}}}{{%- endgeneration -%}}
    {{%- elif message['role'] == 'user' -%}}
        {{{{- {user_open} + write(message['content']) + {user_close} -}}}}
    {{%- elif message['role'] == 'system' -%}}
        {system}
    {{%- else -%}}
        {{{{- raise_exception("A turn is of `system`, `user` or `assistant`, got `" + message['role'] + "`.") -}}}}
    {{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- {assistant_open} -}}}}{{%- endif -%}}
"""


def adapt_chat_template(tokenizer: PreTrainedTokenizerBase, image_token: str = "<|image|>") -> str:
    """Write the chat template of a language model anew, with volumes as content.

    A model that answers after an empty block of thoughts (Qwen3) keeps it, in every turn; a date is frozen. A base
    model without a template gets `User: ...` and `Assistant: ...`, each closed by its end token.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the language model, with its own `chat_template` or none.
        image_token (`str`): Placeholder that stands for a volume.

    Raises:
        ValueError: if the template does not consist of turns that open and close alike, or there is no end token.
    """
    pieces = _plain_pieces(tokenizer) if tokenizer.chat_template is None else _read_pieces(tokenizer)
    literals = {
        name: json.dumps(text, ensure_ascii=False) for name, text in pieces.items() if text is not None
    }
    if pieces["system_open"] is None:
        system = (
            """{{- raise_exception("This language model knows no system turn: put it into the user's.") -}}"""
        )
    else:
        system = (
            f"{{{{- {literals['system_open']} + write(message['content']) + {literals['system_close']} -}}}}"
        )
    return _TEMPLATE.format(**literals, system=system, image_token=json.dumps(image_token))


def _plain_pieces(tokenizer: PreTrainedTokenizerBase) -> dict[str, str | None]:
    if tokenizer.eos_token is None:
        raise ValueError(
            f"A turn must end in a special token, the tokenizer `{tokenizer.name_or_path}` has neither a chat template "
            "nor an `eos_token`. Set one of them and save the tokenizer beside its model."
        )
    end = tokenizer.eos_token + "\n"
    return {
        "start": tokenizer.bos_token or "",
        "default_system": "",
        "system_open": "System: ",
        "system_close": end,
        "user_open": "User: ",
        "user_close": end,
        "assistant_open": "Assistant: ",
        "assistant_close": end,
    }


def _read_pieces(tokenizer: PreTrainedTokenizerBase) -> dict[str, str | None]:
    system, question, answer, question_2, answer_2 = _PLACEHOLDERS

    def render(*texts: str, prompt: bool = False) -> str:
        roles = {system: "system", answer: "assistant", answer_2: "assistant"}
        messages = [{"role": roles.get(text, "user"), "content": text} for text in texts]
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, date_string="26 Jul 2024"
        )

    def between(text: str, left: str, right: str) -> str:
        return text.split(left, 1)[1].split(right, 1)[0]

    def closing(text: str, last: str, following: str) -> str:
        """What closes the last turn: some templates write the end of the whole text behind it (Phi-3)."""
        tail = text.split(last, 1)[1]
        return tail if following.startswith(tail) else tail.removesuffix(tokenizer.eos_token or "")

    conversation = render(question, answer, question_2, answer_2)
    start = (
        tokenizer.bos_token if tokenizer.bos_token and conversation.startswith(tokenizer.bos_token) else ""
    )
    to_answer = between(render(question, answer), question, answer)
    to_question = between(conversation, answer, question_2)
    assistant_close = closing(render(question, answer), answer, to_question)
    user_close = closing(render(question), question, to_answer)
    user_open = to_question.removeprefix(assistant_close)
    before = conversation.split(question, 1)[0]
    pieces: dict[str, str | None] = {
        "start": start,
        "default_system": before.removesuffix(user_open).removeprefix(start),
        "system_open": None,
        "system_close": None,
        "user_open": user_open,
        "user_close": user_close,
        "assistant_open": to_answer.removeprefix(user_close),
        "assistant_close": assistant_close,
    }
    is_regular = (
        before.endswith(user_open)
        and to_question.startswith(assistant_close)
        and to_answer.startswith(user_close)
        and assistant_close
    )
    if not is_regular:
        raise ValueError(
            "A chat template must open and close its turns alike; that of the tokenizer "
            f"`{tokenizer.name_or_path}` does not. Pass a template of your own as `chat_template`."
        )
    try:
        with_system = render(system, question)
    except Exception:  # jinja2's error for `raise_exception`: the model has no system turn
        return pieces
    pieces["system_open"] = with_system.split(system, 1)[0].removeprefix(start)
    pieces["system_close"] = between(with_system, system, question).removesuffix(user_open)
    return pieces


__all__ = ["adapt_chat_template"]
