"""What OpenAI's clients ask with, as far as it is served."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.inference.asking import Asked
from orchestrator.ports import Json

MOST_PROMPTS = 64
MOST_ANSWERS = 64
LONGEST_TEXT = 1_000_000
_MOST_SEED = (1 << 63) - 1

Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
Tokens = Annotated[
    list[Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]], Field(min_length=1, max_length=LONGEST_TEXT)
]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: bool = Field(default=False, description="a last chunk with the usage and no choices")


class Asking(BaseModel):
    """What completions and chats have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1, max_length=64, description="a deployment's id")]
    temperature: Annotated[float, Field(strict=True, ge=0, le=2)] | None = Field(
        default=None, description="0, the default: greedy decoding, the same tokens each time"
    )
    top_p: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(strict=True, ge=0, lt=1 << 31)] | None = Field(
        default=None, description="only so many of the likeliest tokens; 0: all. Not OpenAI's"
    )
    repetition_penalty: Annotated[float, Field(strict=True, ge=0.01, le=100)] | None = Field(
        default=None, description="as in Hugging Face transformers. Not OpenAI's"
    )
    presence_penalty: Annotated[float, Field(strict=True, ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(strict=True, ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(strict=True, ge=-(1 << 63), le=_MOST_SEED)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    n: Annotated[int, Field(strict=True, ge=1, le=16)] | None = Field(
        default=None, description="answers to each prompt"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, description="taken and not used")

    @model_validator(mode="after")
    def _options_are_of_a_stream(self) -> Asking:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for streams; set stream to true or leave it out")
        return self

    @property
    def choices(self) -> int:
        """How many answers each prompt gets."""
        return self.n or 1

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, alternatives: int | None) -> Json:
        """Return the settings that were given, as the head takes them."""
        names = (
            "temperature",
            "top_p",
            "top_k",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        )
        given: Json = {name: value for name in names if (value := getattr(self, name)) is not None}
        if alternatives is not None:
            given["alternatives"] = alternatives
        return given

    def answers(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        max_tokens: int | None,
        alternatives: int | None,
        bare: bool,
    ) -> list[Asked]:
        """Return what each answer is asked with, the answers to one prompt side by side.

        Answers that are drawn differ by their seeds, which follow each other; a request without one gets one
        by chance.
        """
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        sampling = self.sampling(alternatives)
        asked = [
            Asked(prompt=prompt, max_tokens=max_tokens, bare=bare, sampling=sampling, stop=stop)
            for prompt in prompts
            for _ in range(self.choices)
        ]
        if not self.temperature:
            return asked
        first = secrets.randbits(62) if self.seed is None else self.seed
        return [one.with_seed((first + number) & _MOST_SEED) for number, one in enumerate(asked)]


class CompletionRequest(Asking):
    """OpenAI's completion request: text is continued."""

    prompt: Text | Tokens | Annotated[list[Text | Tokens], Field(min_length=1, max_length=MOST_PROMPTS)]
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = 16
    logprobs: Annotated[int, Field(strict=True, ge=0, le=20)] | None = Field(
        default=None, description="tell the log probability of each token, and of so many of the likeliest"
    )
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(strict=True, ge=1, le=16)] | None = None

    @model_validator(mode="after")
    def _best_of_all(self) -> CompletionRequest:
        if self.best_of not in (None, self.choices):
            raise ValueError(
                f"best_of is {self.best_of} and n {self.choices}; all answers are given: leave it out"
            )
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Every prompt by itself."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        tokens = [item for item in self.prompt if isinstance(item, int)]
        return [tokens] if tokens else [item for item in self.prompt if not isinstance(item, int)]

    def asked(self) -> list[Asked]:
        """Return what each answer is asked with."""
        return self.answers(self.prompts, max_tokens=self.max_tokens, alternatives=self.logprobs, bare=False)


class TextPart(BaseModel):
    """A part of a message; only text is served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text"]
    text: Annotated[str, Field(max_length=LONGEST_TEXT)]


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        Annotated[str, Field(max_length=LONGEST_TEXT)] | Annotated[list[TextPart], Field(max_length=1000)]
    )
    name: str | None = None

    def plain(self) -> Json:
        """Return it as chat templates take it."""
        content = (
            self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        )
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(Asking):
    """OpenAI's chat request: a conversation is answered."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = Field(
        default=None, description="what the context allows, if left out"
    )
    max_completion_tokens: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _alternatives_need_probabilities(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs; set logprobs to true or leave top_logprobs out")
        return self

    def asked(self, prompt: str) -> list[Asked]:
        """Return what each answer is asked with, the conversation written as `prompt`."""
        return self.answers(
            [prompt],
            max_tokens=self.max_completion_tokens or self.max_tokens,
            alternatives=(self.top_logprobs or 0) if self.logprobs else None,
            bare=True,
        )
