"""What models that write about pictures are given: tensors of their processors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from blip.errors import InvalidRequest, UnsupportedField
from blip.kinds.caption import CaptionInput
from blip.kinds.chat import ChatInput, ChatMessage
from blip.kinds.pictures import MAX_PIXELS, check_picture
from blip_node.runtimes.diffusion.pictures import open_source

#: What a chat model is asked for a caption of a picture.
QUESTION = "Describe this picture in one sentence."

#: Most pixels of all pictures of a conversation together: decoded they take three bytes each, and
#: as floats, before a processor has made them small, four times that.
MAX_CHAT_PIXELS = 4 * MAX_PIXELS


def caption_inputs(value: CaptionInput, name: str, model: Any, processor: Any) -> dict[str, Any]:
    """Return the inputs of a captioner.

    A prompt is a text that the caption continues. Raises
    :class:`~blip.errors.UnsupportedField` for a model without room for one.
    """
    picture = open_source(value.image)
    kind = model.config.model_type
    if kind == "vision-encoder-decoder":
        if value.prompt:
            raise UnsupportedField(
                f"'prompt': {name} says what it sees and reads nothing.",
                hint="Leave it out.",
                param="prompt",
            )
        return dict(processor(images=picture, return_tensors="pt"))
    # InstructBLIP looks at a picture through the eyes of a question, and needs one
    prompt = value.prompt or (QUESTION if kind == "instructblip" else "")
    if not prompt:
        return dict(processor(images=picture, return_tensors="pt"))
    inputs = dict(processor(images=picture, text=prompt, return_tensors="pt"))
    inputs.pop("token_type_ids", None)  # BERT's tokenizers make them, and no captioner takes them
    if kind == "git":
        # the end marker that its tokenizer adds would end the caption; BLIP takes it off itself
        for field in ("input_ids", "attention_mask"):
            inputs[field] = inputs[field][:, :-1]
    return inputs


def chat_of(value: CaptionInput) -> ChatInput:
    """Return the conversation that gets a caption from a chat model."""
    message = {
        "role": "user",
        "content": value.prompt or QUESTION,
        "pictures": [{"data": value.image}],
    }
    return ChatInput.model_validate({"messages": [message]})


def chat_inputs(value: ChatInput, processor: Any, param: str = "messages") -> dict[str, Any]:
    """Render a conversation with its pictures, up to where the assistant's next message begins.

    Raises :class:`~blip.errors.InvalidRequest` for pictures that cannot be decoded, and for
    messages that the model's template does not accept.
    """
    _check_size(value.messages, param)
    _check_marks(value.messages, processor, param)
    pictures = [
        open_source(picture.data, _place(number, param))
        for number, message in enumerate(value.messages)
        for picture in message.pictures
    ]
    turns: list[dict[str, Any]] = [
        {
            "role": _role(message.role),
            "content": parts_of(message),
            **({} if message.name is None else {"name": message.name}),
        }
        for message in value.messages
    ]
    try:
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        # Templates are programs: besides raise_exception, anything may fail on odd messages.
        raise InvalidRequest(
            f"the model's chat template does not accept these messages: {error}", param=param
        ) from None
    options: dict[str, Any] = {"images": [pictures]} if pictures else {}
    begin = processor.tokenizer.bos_token
    if begin and text.startswith(begin):
        options["add_special_tokens"] = False  # the template wrote its own
    return dict(processor(text=[text], return_tensors="pt", **options))


def resumed(inputs: dict[str, Any], generated: Sequence[int]) -> dict[str, Any]:
    """Return inputs that go on after the tokens that an earlier attempt has delivered."""
    if not generated:
        return inputs
    ids = inputs["input_ids"]
    more = torch.tensor([list(generated)], dtype=ids.dtype)
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([ids, more], dim=1)
    for name, tensor in inputs.items():
        if (
            name != "input_ids" and getattr(tensor, "shape", None) == ids.shape
        ):  # what is said of every token
            fill = torch.ones_like(more) if name == "attention_mask" else torch.zeros_like(more)
            longer[name] = torch.cat([tensor, fill.to(tensor.dtype)], dim=1)
    return longer


def parts_of(message: ChatMessage) -> list[dict[str, str]]:
    """Return a message as templates want it: parts of text, with the pictures between them."""
    parts: list[dict[str, str]] = []
    begun = 0
    for picture in sorted(message.pictures, key=lambda picture: picture.at):
        text = message.content[begun : picture.at].strip("\n")
        if text:
            parts.append({"type": "text", "text": text})
        parts.append({"type": "image"})
        begun = picture.at
    rest = message.content[begun:]
    rest = rest.lstrip("\n") if message.pictures else rest
    if rest or not parts:
        parts.append({"type": "text", "text": rest})
    return parts


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _place(number: int, param: str) -> str:
    return f"messages.{number}.content" if param == "messages" else param


def _check_size(messages: Sequence[ChatMessage], param: str) -> None:
    headers = [
        check_picture(picture.data, _place(number, param))
        for number, message in enumerate(messages)
        for picture in message.pictures
    ]
    pixels = sum(header.width * header.height for header in headers)
    if pixels > MAX_CHAT_PIXELS:
        raise InvalidRequest(
            f"the pictures of this conversation have {pixels} pixels; {MAX_CHAT_PIXELS} are the "
            "most",
            hint="Send fewer, or scale them down.",
            param=param,
            details={"pixels": pixels, "limit": MAX_CHAT_PIXELS},
        )


def _check_marks(messages: Sequence[ChatMessage], processor: Any, param: str) -> None:
    """Raise for a text with the mark that stands for a picture: it would count as one."""
    mark = getattr(processor, "image_token", None)
    if not isinstance(mark, str) or not mark:
        return
    for number, message in enumerate(messages):
        if mark in message.content:
            place = _place(number, param) if param == "messages" else "prompt"
            raise InvalidRequest(
                f"'{place}' has {mark!r} in it, which stands for a picture in this model's prompts",
                hint="Send the picture itself, and write the text without.",
                param=place,
            )
