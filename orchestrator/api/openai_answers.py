"""Answers in OpenAI's shapes, whole or streamed, made from what the heads tell."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.api.services import Completion
from orchestrator.api.timings import Timings
from orchestrator.errors import Unavailable
from orchestrator.ports import Json


class Shape(Protocol):
    """How one kind of answer looks."""

    whole: str
    """Its `object`."""
    piece: str
    """That of a part of it, in a stream."""

    def choice(self, index: int, answer: Answer) -> Json:
        """Return a finished answer."""
        ...

    def part(self, index: int, chunk: Json, *, offset: int) -> Json:
        """Return what a chunk adds to an answer, `offset` characters of which were told before."""
        ...

    def opening(self, index: int) -> Json | None:
        """Return what a stream says of an answer before its first token."""
        ...


@dataclass(slots=True)
class Answer:
    """One answer, as far as it has come."""

    chunks: list[Json] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def text(self) -> str:
        """All of its text."""
        return "".join(chunk["text"] for chunk in self.chunks)

    def details(self) -> Json:
        """Return what OpenAI has no place for: tokens, by how much each was the best, and who computed it."""
        return {
            "tokens": [chunk["token"] for chunk in self.chunks],
            "margins": [chunk.get("margin") for chunk in self.chunks],
            "epochs": [chunk["epoch"] for chunk in self.chunks],
        }


class TextShape:
    """`text_completion`."""

    whole = piece = "text_completion"

    def choice(self, index: int, answer: Answer) -> Json:
        """Return a finished answer."""
        return {
            "index": index,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "logprobs": _text_logprobs(answer.chunks, offset=0),
        }

    def part(self, index: int, chunk: Json, *, offset: int) -> Json:
        """Return what a chunk adds."""
        told = [chunk] if "token" in chunk else []
        return {
            "index": index,
            "text": chunk.get("text", ""),
            "finish_reason": chunk.get("finish_reason"),
            "logprobs": _text_logprobs(told, offset=offset),
        }

    def opening(self, index: int) -> Json | None:
        """Say nothing before the text."""
        return None


class ChatShape:
    """`chat.completion`, in parts `chat.completion.chunk`."""

    whole, piece = "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, answer: Answer) -> Json:
        """Return a finished answer."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "finish_reason": answer.finish_reason,
            "logprobs": _chat_logprobs(answer.chunks),
        }

    def part(self, index: int, chunk: Json, *, offset: int) -> Json:
        """Return what a chunk adds."""
        delta = {"content": chunk["text"]} if "token" in chunk else {}
        told = [chunk] if "token" in chunk else []
        finish = chunk.get("finish_reason")
        return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": _chat_logprobs(told)}

    def opening(self, index: int) -> Json | None:
        """Say who speaks."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """One request that is being answered."""

    completion: Completion
    shape: Shape
    model: str
    created: int
    choices: int
    """Answers to each prompt."""

    def whole(self, *, gone: Callable[[], bool] = lambda: False) -> Json:
        """Wait for every answer and return them; ends them once `gone` says that nobody waits any more.

        Raises:
            Unavailable: one could not be finished.
        """
        answers = [Answer() for _ in self.completion.prompt_tokens]
        for chunk in self.completion.chunks():
            if gone():
                self.completion.cancel()
                raise Unavailable("the client went away before the completion was finished")
            answer = answers[chunk.get("choice", 0)]
            if "finish_reason" not in chunk:
                answer.chunks.append(chunk)
                continue
            if chunk["finish_reason"] == "error":
                self.completion.cancel()
                raise Unavailable(f"the completion could not be finished: {chunk.get('detail')}")
            answer.finish_reason = chunk["finish_reason"]
        document = self._document(
            self.shape.whole, [self.shape.choice(index, answer) for index, answer in enumerate(answers)]
        )
        document["usage"] = self._usage(sum(len(answer.chunks) for answer in answers))
        details = [answer.details() for answer in answers]
        timings = self._timings()
        for answer, timing in zip(answers, timings, strict=True):
            for chunk in answer.chunks:
                timing.add(chunk)
        if len(details) == 1:
            return document | {"utopia": details[0], "timings": timings[0].document()}
        each = [
            detail | {"timings": timing.document()} for detail, timing in zip(details, timings, strict=True)
        ]
        return document | {"utopia": {"choices": each}}

    def streamed(self, *, usage: bool) -> Iterator[str]:
        """Give the answers token by token as server-sent events; a reader that vanishes ends them."""
        places = range(len(self.completion.prompt_tokens))
        given = dict.fromkeys(places, 0)
        finished, tokens = 0, 0
        timings = self._timings()
        try:
            for opening in filter(None, map(self.shape.opening, places)):
                yield self._event([opening])
            for chunk in self.completion.chunks():
                finished += "finish_reason" in chunk
                if chunk.get("finish_reason") == "error":
                    yield _data({"error": _server_error(chunk.get("detail"))})
                    return
                index = chunk.get("choice", 0)
                details = {key: value for key, value in chunk.items() if key not in _IN_CHOICES}
                more = {"utopia": details} if "token" in chunk else {}
                yield self._event([self.shape.part(index, chunk, offset=given[index])], **more)
                given[index] += len(chunk.get("text", ""))
                if "token" in chunk:
                    tokens += 1
                    timings[index].add(chunk)
            if usage:
                yield self._event([], usage=self._usage(tokens), **_told(timings))
            yield "data: [DONE]\n\n"
        finally:
            if finished < len(places):
                self.completion.cancel()

    def _timings(self) -> list[Timings]:
        return [Timings(tokens) for tokens in self.completion.prompt_tokens]

    def _event(self, choices: list[Json], **more: Any) -> str:
        return _data(self._document(self.shape.piece, choices) | more)

    def _document(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.completion.request,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _usage(self, tokens: int) -> Json:
        """Count tokens; a prompt counts once, however many answers it has."""
        prompt = sum(self.completion.prompt_tokens[:: self.choices])
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


_IN_CHOICES = ("choice", "text", "logprob", "token_text", "top_logprobs", "nodes", "emulated")
"""What a part of a stream says in its choices, or only the end of the answer."""


def _told(timings: Sequence[Timings]) -> Json:
    """Return what the end of a stream says of the time: of each answer, where there are several."""
    if len(timings) == 1:
        return {"timings": timings[0].document()}
    return {"utopia": {"choices": [{"timings": timing.document()} for timing in timings]}}


def _text_logprobs(chunks: Sequence[Json], *, offset: int) -> Json | None:
    """Return OpenAI's older form: lists side by side; `text_offset` counts characters of the answer."""
    told = [chunk for chunk in chunks if "logprob" in chunk]
    if not told:
        return None
    offsets = []
    for chunk in told:
        offsets.append(offset)
        offset += len(chunk["text"])
    return {
        "tokens": [chunk["token_text"] for chunk in told],
        "token_logprobs": [chunk["logprob"] for chunk in told],
        "top_logprobs": [{text: value for _, text, value in chunk["top_logprobs"]} for chunk in told],
        "text_offset": offsets,
    }


def _chat_logprobs(chunks: Sequence[Json]) -> Json | None:
    told = [chunk for chunk in chunks if "logprob" in chunk]
    if not told:
        return None
    content = [
        {
            **_probability(chunk["token_text"], chunk["logprob"]),
            "top_logprobs": [_probability(text, value) for _, text, value in chunk["top_logprobs"]],
        }
        for chunk in told
    ]
    return {"content": content, "refusal": None}


def _probability(text: str, value: float) -> Json:
    return {"token": text, "logprob": value, "bytes": list(text.encode())}


def _server_error(detail: object) -> Json:
    return {"message": str(detail), "type": "server_error", "param": None, "code": None}


def _data(document: Json) -> str:
    return f"data: {json.dumps(document, separators=(',', ':'))}\n\n"
